"""Run the `dynasurge` command with `python -m dynasurge`."""

import sys

from dynasurge.cli.main import main

sys.exit(main())
