"""`python -m telescope` is the command `telescope`; torchrun starts it so."""

import os
import sys

if __name__ == "__main__":
    if not sys.flags.safe_path and sys.path[0] in ("", os.getcwd()):
        del sys.path[0]  # as the command has it: a torch.py in the working directory is not what `import torch` finds
    from telescope.cli import main

    sys.exit(main())
