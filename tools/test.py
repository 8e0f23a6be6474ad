"""`python tools/test.py`: the code is that of `detseg/commands/test.py`."""

import sys

from detseg.commands.test import main

if __name__ == "__main__":
    sys.exit(main())
