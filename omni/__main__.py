"""``python -m omni`` is the command ``omni``."""

import sys

from omni.cli import main

sys.exit(main())
