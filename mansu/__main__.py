"""``python -m mansu``."""

import sys

from mansu.cli.commands import main

sys.exit(main())
