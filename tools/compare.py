"""`python tools/compare.py`: the code is that of `detseg/commands/compare.py`."""

import sys

from detseg.commands.compare import main

if __name__ == "__main__":
    sys.exit(main())
