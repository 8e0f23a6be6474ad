"""`python tools/train.py`: the code is that of `detseg/commands/train.py`."""

import sys

from detseg.commands.train import main

if __name__ == "__main__":
    sys.exit(main())
