"""`python -m deftly` is the `deftly` command."""

import sys

from deftly.commands.main import main

sys.exit(main())
