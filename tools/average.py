"""`python tools/average.py`: the code is that of `detseg/commands/average.py`."""

import sys

from detseg.commands.average import main

if __name__ == "__main__":
    sys.exit(main())
