"""`python -m deftly` is the `deftly` command."""

import sys

from deftly.commands.cli import main

sys.exit(main())
