"""`python tools/export.py`: the code is that of `detseg/commands/export.py`."""

import sys

from detseg.commands.export import main

if __name__ == "__main__":
    sys.exit(main())
