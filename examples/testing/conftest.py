"""The snapshot of all tests: the migrations, and then the seed data."""

from bbcache.testing.postgres import snapshot


@snapshot(inputs=["migrations/*.sql", "seed/*.sql"])
def bank(db):
    for directory in ("migrations", "seed"):
        for path in sorted((db.cwd / directory).glob("*.sql")):
            db.psql_file(path)
