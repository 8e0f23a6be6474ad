"""`python tools/convert_data.py`: the code is that of `detseg/commands/convert_data.py`."""

import sys

from detseg.commands.convert_data import main

if __name__ == "__main__":
    sys.exit(main())
