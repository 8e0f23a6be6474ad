"""`python tools/configs.py`: the code is that of `detseg/commands/configs.py`."""

import sys

from detseg.commands.configs import main

if __name__ == "__main__":
    sys.exit(main())
