"""SQLAlchemy, by each of its drivers."""

import asyncio

import pytest
import sqlalchemy
from sqlalchemy.ext.asyncio import create_async_engine

COUNT = sqlalchemy.text("SELECT count(*) FROM account")


@pytest.mark.parametrize("driver", ["psycopg", "psycopg2", "pg8000"])
def test_sync(pg_database, driver):
    engine = sqlalchemy.create_engine(pg_database.sqlalchemy_url(driver))
    with engine.connect() as connection:
        assert connection.execute(COUNT).scalar() == 2
    engine.dispose()


@pytest.mark.parametrize("driver", ["psycopg", "asyncpg"])
def test_async(pg_database, driver):
    async def count():
        engine = create_async_engine(pg_database.sqlalchemy_url(driver))
        async with engine.connect() as connection:
            found = (await connection.execute(COUNT)).scalar()
        await engine.dispose()
        return found

    assert asyncio.run(count()) == 2
