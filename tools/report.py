"""`python tools/report.py`: the code is that of `detseg/commands/report.py`."""

import sys

from detseg.commands.report import main

if __name__ == "__main__":
    sys.exit(main())
