"""``python -m aablur``: see `aablur.cli`."""

import sys

from .cli import main

sys.exit(main())
