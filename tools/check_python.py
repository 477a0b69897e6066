"""Says in one sentence whether the interpreter that runs it can host telescope; leaves out the packages.

Runs on any Python 3, so that an old one gets the sentence and not a syntax error.
"""

import sys

OLDEST, NEWEST = (3, 11), (3, 13)

if not OLDEST <= sys.version_info[:2] <= NEWEST:
    found = f"{sys.executable} is Python {sys.version_info[0]}.{sys.version_info[1]}"
    sys.exit(f"telescope needs Python 3.11, 3.12 or 3.13, but {found}; try: make PYTHON=python3.12 test")
try:
    import ensurepip  # noqa: F401
except ImportError:
    sys.exit("this Python has no venv module; on Debian and Ubuntu: apt install python3-venv")
