"""What all tests share: one thread each, and property tests that repeat themselves.

Leaves out the fixtures of single test files.
"""

import os
import tempfile

# Set before NumPy or torch is loaded, and inherited by the commands that tests start: workers share cores.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ["XDG_STATE_HOME"] = tempfile.mkdtemp(
    prefix="telescope-state-"
)  # the key that signs runs: not the user's own
# Threads that wait awake, as is the default, take the cores from the other workers when a test asks for two.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from hypothesis import settings

torch.set_num_threads(1)
if not torch.cuda.is_available():
    # Triton decides once and for good, when the first of us imports it, whether it interprets.
    os.environ.setdefault("TRITON_INTERPRET", "1")

# No deadline: the first call of a kernel compiles it. Derandomised: same code, same verdict.
settings.register_profile("telescope", deadline=None, derandomize=True, database=None)
# `--hypothesis-profile=long`: more examples, new ones each time.
settings.register_profile("long", deadline=None, max_examples=1000, database=None)
settings.load_profile("telescope")
