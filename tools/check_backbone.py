"""`python tools/check_backbone.py`: the code is that of `detseg/commands/check_backbone.py`."""

import sys

from detseg.commands.check_backbone import main

if __name__ == "__main__":
    sys.exit(main())
