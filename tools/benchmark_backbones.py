"""`python tools/benchmark_backbones.py`: the code is that of `detseg/commands/benchmark_backbones.py`."""

import sys

from detseg.commands.benchmark_backbones import main

if __name__ == "__main__":
    sys.exit(main())
