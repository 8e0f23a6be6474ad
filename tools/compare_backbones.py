"""`python tools/compare_backbones.py`: the code is that of `detseg/commands/compare_backbones.py`."""

import sys

from detseg.commands.compare_backbones import main

if __name__ == "__main__":
    sys.exit(main())
