"""`python tools/analyze.py`: the code is that of `detseg/commands/analyze.py`."""

import sys

from detseg.commands.analyze import main

if __name__ == "__main__":
    sys.exit(main())
