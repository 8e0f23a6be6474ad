"""`python tools/benchmark.py`: the code is that of `detseg/commands/benchmark.py`."""

import sys

from detseg.commands.benchmark import main

if __name__ == "__main__":
    sys.exit(main())
