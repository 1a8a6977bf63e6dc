"""psycopg2."""

import contextlib

import psycopg2


def test_psycopg2(pg_database):
    with contextlib.closing(psycopg2.connect(pg_database.dsn)) as connection:
        with connection.cursor() as cursor:
            cursor.execute("SELECT count(*) FROM account")
            assert cursor.fetchone() == (2,)
