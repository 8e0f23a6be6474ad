"""`python tools/small_picture.py`: the code is that of `detseg/commands/small_picture.py`."""

import sys

from detseg.commands.small_picture import main

if __name__ == "__main__":
    sys.exit(main())
