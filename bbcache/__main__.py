"""``python -m bbcache``."""

import sys

from bbcache.cli.main import main

sys.exit(main())
