"""Tries an installed wheel as a user without extras has it: import, one estimate, the command's advice.

Leaves out what the tests cover. Run it with `python -I` in a venv that holds the wheel and nothing more.
"""

import importlib.metadata
import importlib.resources
import subprocess
import sys
from pathlib import Path

import numpy as np

import telescope
from telescope.lab import pages

rewards, values, next_values = np.array([[1.0, 2.0, 4.0], [0.5, 1.0, 2.0], [1.0, 2.0, 8.0]])
terminated = np.array([False, False, True])
got = telescope.gae(rewards, values, next_values, terminated=terminated, truncated=None, gamma=0.5, lam=0.5).advantages
# δ = r + γ(1 - terminated)v' - v = (1, 2, 2); Â_t = δ_t + Â_{t+1}/4, by hand:
np.testing.assert_allclose(got, [1.625, 2.5, 2.0], rtol=1e-12)

loaded = {"torch", "jax", "gymnasium"} & set(sys.modules)
assert not loaded, f"computing advantages from NumPy arrays loaded {loaded}"
assert telescope.__version__ == importlib.metadata.version("telescope-rl")
assert (importlib.resources.files(telescope) / "py.typed").is_file()
assert "<style>\n/* The look" in pages.page("a page", "")

command = Path(sys.executable).with_name("telescope")
advice = subprocess.run([command, "--help"], capture_output=True, text=True, check=False)
said = advice.stdout + advice.stderr
assert "telescope-rl[control]" in said, f"telescope --help said: {said}"
assert "Traceback" not in said, f"telescope --help said: {said}"

print(f"wheel {telescope.__version__}: imports, estimates, and names the extra for the command line")
