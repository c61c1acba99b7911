"""A script without a guard."""

import sys

sys.exit(2)
