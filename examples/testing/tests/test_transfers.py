"""Each test changes a database of its own, so their order does not matter."""

import bank
import psycopg
import pytest


@pytest.fixture
def connection(pg_database):
    with psycopg.connect(pg_database.url) as connection:
        yield connection


@pytest.mark.parametrize("amount", [1, 20, 100])
def test_a_transfer(connection, amount):
    bank.transfer(connection, 1, 2, amount)
    assert bank.balances(connection) == {"ann": 100 - amount, "bob": 20 + amount}


@pytest.mark.parametrize("amount", [21, 1000])
def test_too_little_money(connection, amount):
    with pytest.raises(bank.OverdrawnError, match="account 2"):
        bank.transfer(connection, 2, 1, amount)
    assert bank.balances(connection) == {"ann": 100, "bob": 20}


def test_two_connections(pg_database, connection):
    with psycopg.connect(pg_database.url, autocommit=True) as other:
        with connection.transaction():
            bank.transfer(connection, 1, 2, 50)
            assert bank.balances(other)["ann"] == 100
        assert bank.balances(other)["ann"] == 50
