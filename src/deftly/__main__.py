"""`python -m deftly` is the `deftly` command."""

import sys

from deftly.cli import main

sys.exit(main())
