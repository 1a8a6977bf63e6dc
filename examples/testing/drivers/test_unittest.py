"""unittest without pytest: `python -m unittest drivers/test_unittest.py` works, too."""

import sys
from pathlib import Path

from bbcache.testing.postgres import PostgresTestCase

sys.path.insert(0, str(Path(__file__).parent.parent))

from conftest import bank


class TestBank(PostgresTestCase):
    snapshot = bank

    def test_count(self):
        self.assertEqual(self.database.psql("SELECT count(*) FROM account"), "2")

    def test_change(self):
        self.database.psql("DELETE FROM account")
        self.assertEqual(self.database.psql("SELECT count(*) FROM account"), "0")
