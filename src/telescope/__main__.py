"""`python -m telescope` is the command `telescope`. torchrun starts it this way."""

import os
import sys

if __name__ == "__main__":
    if not sys.flags.safe_path and sys.path[0] in ("", os.getcwd()):
        del sys.path[0]  # as for the command: `import torch` must not find a torch.py in the working directory
    from telescope.cli import main

    sys.exit(main())
