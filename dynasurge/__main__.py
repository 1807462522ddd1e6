"""`python -m dynasurge` is the `dynasurge` command."""

import sys

from dynasurge.cli.main import main

sys.exit(main())
