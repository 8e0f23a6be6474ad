"""`python tools/backbone_table.py`: the code is that of `detseg/commands/backbone_table.py`."""

import sys

from detseg.commands.backbone_table import main

if __name__ == "__main__":
    sys.exit(main())
