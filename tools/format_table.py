"""`python tools/format_table.py`: the code is that of `detseg/commands/format_table.py`."""

import sys

from detseg.commands.format_table import main

if __name__ == "__main__":
    sys.exit(main())
