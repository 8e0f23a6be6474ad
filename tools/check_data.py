"""`python tools/check_data.py`: the code is that of `detseg/commands/check_data.py`."""

import sys

from detseg.commands.check_data import main

if __name__ == "__main__":
    sys.exit(main())
