"""`python tools/demo.py`: the code is that of `detseg/commands/demo.py`."""

import sys

from detseg.commands.demo import main

if __name__ == "__main__":
    sys.exit(main())
