"""`python tools/layout_table.py`: the code is that of `detseg/commands/layout_table.py`."""

import sys

from detseg.commands.layout_table import main

if __name__ == "__main__":
    sys.exit(main())
