"""`python -m globalvit`: the command without its script."""

import sys

from globalvit.cli.main import main

sys.exit(main())
