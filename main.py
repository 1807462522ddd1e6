"""`python main.py` is the `dynasurge` command, for running from a clone."""

import sys

from dynasurge.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
