"""``python -m greenroom.cli``: the command where no script is installed."""

import sys

from greenroom.cli.main import main

sys.exit(main())
