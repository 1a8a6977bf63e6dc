"""psycopg 3, with and without asyncio."""

import asyncio

import psycopg


def test_sync(pg_database):
    with psycopg.connect(pg_database.dsn) as connection:
        assert connection.execute("SELECT count(*) FROM account").fetchone() == (2,)


def test_async(pg_database):
    async def count():
        async with await psycopg.AsyncConnection.connect(pg_database.url) as connection:
            cursor = await connection.execute("SELECT count(*) FROM account")
            return await cursor.fetchone()

    assert asyncio.run(count()) == (2,)
