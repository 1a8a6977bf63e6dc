"""``python -m bbcache.cli``."""

import sys

from bbcache.cli.main import main

sys.exit(main())
