"""`python -m telescope` is the command `telescope`; torchrun starts it so."""

import sys

from telescope.cli import main

if __name__ == "__main__":
    sys.exit(main())
