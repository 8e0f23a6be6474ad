"""`python tools/app_code.py`: the code is that of `detseg/commands/app_code.py`."""

import sys

from detseg.commands.app_code import main

if __name__ == "__main__":
    sys.exit(main())
