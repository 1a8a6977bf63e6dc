"""The fixture `postgresql`, for projects that come from pytest-postgresql."""

pytest_plugins = ["bbcache.testing.postgres.aliases"]


def test_a_connection(postgresql):
    with postgresql.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM account")
        assert cursor.fetchone() == (2,)
