"""Django: its own test databases are copies of the snapshot."""

import django
import pytest
from django.conf import settings

from bbcache.testing.postgres import django_database


@pytest.fixture(scope="module", autouse=True)
def configured(pg_server):
    settings.configure(DATABASES={"default": django_database(pg_server)}, USE_TZ=True)
    django.setup()


def count(alias="default"):
    from django.db import connections

    with connections[alias].cursor() as cursor:
        cursor.execute("SELECT count(*) FROM account")
        return cursor.fetchone()[0]


def test_the_runner_of_django():
    from django.test.runner import DiscoverRunner

    runner = DiscoverRunner(verbosity=0, interactive=False)
    databases = runner.setup_databases()
    assert count() == 2
    runner.teardown_databases(databases)


def test_one_database(pg_database):
    from django.db import connections

    connections.databases["one"] = {**connections.databases["default"], **pg_database.django}
    assert count("one") == 2
    connections["one"].close()
    del connections["one"], connections.databases["one"]
