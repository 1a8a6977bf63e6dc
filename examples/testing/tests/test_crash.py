"""A test may do what it likes to a server of its own."""

import bank
import psycopg


def test_a_transfer_survives_a_crash(pg_fresh_server):
    with psycopg.connect(pg_fresh_server.url) as connection:
        bank.transfer(connection, 1, 2, 30)
    pg_fresh_server.restart("immediate")
    with psycopg.connect(pg_fresh_server.url) as connection:
        assert bank.balances(connection) == {"ann": 70, "bob": 50}
