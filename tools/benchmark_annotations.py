"""`python tools/benchmark_annotations.py`: the code is that of `detseg/commands/benchmark_annotations.py`."""

import sys

from detseg.commands.benchmark_annotations import main

if __name__ == "__main__":
    sys.exit(main())
