"""``python -m mansu``."""

import sys

from mansu.cli import main

sys.exit(main())
