"""``python -m oasis_core.cli``: the same command where no script is installed."""

import sys

from .main import main

sys.exit(main())
