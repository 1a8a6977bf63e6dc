"""One database of a server, as drivers, tools and frameworks want to be told of it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote, urlencode

from bbcache.errors import PostgresError
from bbcache.postgres.server.binaries import PostgresBinaries

_LIBPQ_PREFIX: Final = "PG"  # of environment variables


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens. Immutable, so thread-safe.

    Attributes:
        host: a directory with its socket, or an IP address.
        port: its port.
        user: the superuser.
        password: the password for TCP; None for a socket.
    """

    host: str
    port: int
    user: str
    password: str | None = None


@dataclass(frozen=True, slots=True)
class Database:
    """A database. Immutable, so thread-safe.

    Attributes:
        name: its name.
        address: where its server listens.
        binaries: the programs of its server.
        cwd: where `run` runs programs, and the paths in `psql` scripts begin.
    """

    name: str
    address: Address
    binaries: PostgresBinaries
    cwd: Path

    @property
    def url(self) -> str:
        """A URL for libpq, psycopg, asyncpg and most other drivers."""
        return self._url("postgresql")

    @property
    def dsn(self) -> str:
        """A connection string of libpq's keywords."""
        return " ".join(f"{key}={_quoted(value)}" for key, value in self._parameters().items())

    @property
    def env(self) -> dict[str, str]:
        """Variables for programs that use libpq, and ``DATABASE_URL`` for those that do not."""
        named = {f"PG{key.upper()}": value for key, value in self._parameters().items()}
        named["PGDATABASE"] = named.pop("PGDBNAME")
        return {**named, "DATABASE_URL": self.url}

    @property
    def django(self) -> dict[str, Any]:
        """An entry of Django's DATABASES setting that uses this very database."""
        at = self.address
        return {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": self.name,
            "USER": at.user,
            "PASSWORD": at.password or "",
            "HOST": at.host,
            "PORT": str(at.port),
        }

    def sqlalchemy_url(self, driver: str = "psycopg") -> str:
        """Return a URL for SQLAlchemy.

        Args:
            driver: ``psycopg``, ``psycopg2``, ``asyncpg`` or ``pg8000``.
        """
        return self._url(f"postgresql+{driver}")

    def psql(self, sql: str) -> str:
        """Run SQL with psql and return its rows, unaligned, without the last line end.

        It stops at the first error. Backslash commands and ``COPY FROM stdin`` work.

        Raises:
            PostgresError: a statement failed, or psql is missing.
        """
        return self._psql(["--file=-"], sql)

    def psql_file(self, path: Path | str) -> str:
        r"""Run a file of SQL with psql, as `psql`; ``\ir`` in it is relative to the file.

        Args:
            path: the file; relative to the root of the snapshot.

        Raises:
            PostgresError: as `psql`.
        """
        return self._psql([f"--file={self.cwd / path}"])

    def run(
        self, argv: Sequence[str | os.PathLike[str]], **options: Any
    ) -> subprocess.CompletedProcess[str]:
        """Run a program to its end, such as a migration tool, with `env` in its environment.

        It is looked for in the virtual environment of this process first, also where that is
        not activated.

        Args:
            argv: the program and its arguments.
            options: for `subprocess.run`, such as `cwd`, which is relative to the root of the
                snapshot, and that root otherwise; an `env` is added to the variables.

        Raises:
            PostgresError: it cannot be started or has failed; has what it printed.
        """
        kept = {k: v for k, v in os.environ.items() if not k.startswith(_LIBPQ_PREFIX)}
        env = {**kept, **_own_scripts(kept), **self.env, **options.pop("env", {})}
        shown = " ".join(os.fspath(each) for each in argv)
        cwd = self.cwd / options.pop("cwd", "")
        given = {"cwd": cwd, "capture_output": True, "stdin": subprocess.DEVNULL, **options}
        if "input" in given:
            del given["stdin"]
        try:
            done = subprocess.run(  # noqa: S603 - the caller's own program
                argv, **given, env=env, encoding="utf-8", errors="replace", check=False
            )
        except OSError as error:
            raise PostgresError(f"cannot run {shown}: {error.strerror}") from error
        if done.returncode != 0:
            said = "\n".join(filter(None, (done.stdout, done.stderr))).strip()
            raise PostgresError(f"{shown} failed with exit status {done.returncode}:\n{said}")
        return done

    def _psql(self, arguments: Sequence[str], text: str | None = None) -> str:
        command = [str(self.binaries.tool("psql")), "-XAtq", "--set=ON_ERROR_STOP=1", *arguments]
        options = {} if text is None else {"input": text}
        return self.run(command, **options).stdout.rstrip("\n")

    def _parameters(self) -> dict[str, str]:
        at = self.address
        given = {"host": at.host, "port": str(at.port), "user": at.user}
        password = {} if at.password is None else {"password": at.password}
        return {**given, **password, "dbname": self.name}

    def _url(self, scheme: str) -> str:
        at, name = self.address, quote(self.name, safe="")
        if at.password is not None:
            user = f"{quote(at.user, safe='')}:{quote(at.password, safe='')}"
            return f"{scheme}://{user}@{at.host}:{at.port}/{name}"
        if scheme.endswith("+pg8000"):
            query = {"unix_sock": f"{at.host}/.s.PGSQL.{at.port}"}
        else:
            query = {"host": at.host, "port": str(at.port)}
        parameters = urlencode(query, quote_via=quote, safe="/")
        return f"{scheme}://{quote(at.user, safe='')}@/{name}?{parameters}"


def _own_scripts(env: Mapping[str, str]) -> dict[str, str]:
    """Return a PATH with the programs of this virtual environment, if this is one."""
    if sys.prefix == sys.base_prefix:
        return {}
    return {"PATH": os.pathsep.join((f"{sys.prefix}/bin", env.get("PATH", os.defpath)))}


def _quoted(value: str) -> str:
    if value and not set(value) & set(" '\\"):
        return value
    escaped = value.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
