"""A bank whose ledger is in PostgreSQL."""

import psycopg


class OverdrawnError(Exception):
    """An account has less than what is to be taken from it."""


def transfer(connection, from_id, to_id, amount):
    """Move money between accounts, all of it or nothing."""
    try:
        with connection.transaction():
            add = "UPDATE account SET balance = balance + %s WHERE id = %s"
            connection.execute(add, (-amount, from_id))
            connection.execute(add, (amount, to_id))
            connection.execute(
                "INSERT INTO transfer (from_id, to_id, amount) VALUES (%s, %s, %s)",
                (from_id, to_id, amount),
            )
    except psycopg.errors.CheckViolation as error:
        raise OverdrawnError(f"account {from_id} has less than {amount}") from error


def balances(connection):
    """The balance of each account by its owner's name."""
    return dict(connection.execute("SELECT name, balance FROM account ORDER BY id").fetchall())
