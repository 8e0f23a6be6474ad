"""`python tools/predict.py`: the code is that of `detseg/commands/predict.py`."""

import sys

from detseg.commands.predict import main

if __name__ == "__main__":
    sys.exit(main())
