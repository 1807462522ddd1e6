"""`python -m dynasurge` is the `dynasurge` command."""

import sys

from dynasurge.cli import main

sys.exit(main())
