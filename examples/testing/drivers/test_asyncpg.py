"""asyncpg."""

import asyncio

import asyncpg


def test_asyncpg(pg_database):
    async def count():
        connection = await asyncpg.connect(pg_database.url)
        try:
            return await connection.fetchval("SELECT count(*) FROM account")
        finally:
            await connection.close()

    assert asyncio.run(count()) == 2
