"""`python tools/browse.py`: the code is that of `detseg/commands/browse.py`."""

import sys

from detseg.commands.browse import main

if __name__ == "__main__":
    sys.exit(main())
