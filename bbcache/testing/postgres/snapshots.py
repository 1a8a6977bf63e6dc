"""What a snapshot is made of: a builder, and the files that it depends on."""

from __future__ import annotations

import glob
import inspect
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bbcache.testing.postgres.database import Database
from bbcache.testing.postgres.errors import SnapshotError

Builder = Callable[[Database], object]
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,40}")
_COMPILED: Final = "__pycache__"  # differs from machine to machine


@dataclass(frozen=True, slots=True, eq=False)
class Snapshot:
    """A database cluster to be made once. Make one with `snapshot`. Immutable, so thread-safe.

    Attributes:
        name: the builder's name.
        builder: called with an empty database, which it fills.
        inputs: patterns of files below `root`.
        version: any text; another text is another snapshot.
        root: the directory that `inputs` are relative to.
        initdb_args: arguments for initdb.
        settings: server settings, while it is made and for every server of it.
    """

    name: str
    builder: Builder | None
    inputs: tuple[str, ...]
    version: str
    root: Path
    initdb_args: tuple[str, ...]
    settings: Mapping[str, str]

    def input_files(self) -> list[tuple[str, Path]]:
        """Return each input file with its path relative to the root, sorted.

        A directory stands for all files below it. Hidden files have to be named, and compiled
        Python is left out.

        Raises:
            SnapshotError: a pattern matches no file.
        """
        found: dict[str, Path] = {}
        for pattern in self.inputs:
            matched = dict(self._match(pattern))
            if not matched:
                raise SnapshotError(
                    f"snapshot {self.name}: no file matches {pattern!r} in {self.root}\n"
                    "hint: Correct the pattern, or set root to the directory it is relative to."
                )
            found.update(matched)
        return sorted(found.items())

    def _match(self, pattern: str) -> Iterator[tuple[str, Path]]:
        for name in glob.glob(pattern, root_dir=self.root, recursive=True):
            path = self.root / name
            names = [name]
            if path.is_dir() and not pattern.endswith("**"):
                names = glob.glob(f"{glob.escape(name)}/**", root_dir=self.root, recursive=True)
            for each in names:
                relative = os.path.normpath(each).replace(os.sep, "/")
                if _COMPILED not in relative.split("/") and (self.root / each).is_file():
                    yield relative, self.root / each

    def source(self) -> str:
        """Return the line of the builder, and its whole file; empty if there is no builder.

        The file has the constants and functions that a builder uses.

        Raises:
            SnapshotError: it is in no file, or depends on values that no file has.
        """
        if self.builder is None:
            return ""
        hidden = _hidden_values(self.builder)
        if hidden and not self.version:
            raise SnapshotError(
                f"snapshot {self.name}: its builder gets {', '.join(hidden)} from outside, which "
                "the fingerprint cannot see\n"
                "hint: Name the values in version, such as version=f'{name}'."
            )
        try:
            return _source_of(self.builder)
        except (OSError, TypeError) as error:
            raise SnapshotError(
                f"snapshot {self.name}: the source of its builder cannot be read: {error}\n"
                "hint: Define the builder as a function in a file."
            ) from error


def _source_of(builder: Builder) -> str:
    # From 3.13 on, the text of `python -c` passes for the source of all that is in no file.
    if inspect.getfile(inspect.unwrap(builder)).startswith("<"):
        raise OSError("it is in no file")
    lines, number = inspect.findsource(builder)
    return "".join((f"{number}\n", *lines))


def _hidden_values(builder: Builder) -> list[str]:
    """Return the names that have other values in another call of the function around a builder."""
    function = inspect.unwrap(builder)
    if not inspect.isfunction(function):
        return []
    defaults = [
        name
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.default is not parameter.empty
    ]
    return [*function.__code__.co_freevars, *defaults]


def snapshot(
    *,
    inputs: Sequence[str],
    version: str = "",
    root: Path | str | None = None,
    initdb_args: Sequence[str] = (),
    settings: Mapping[str, str] | None = None,
) -> Callable[[Builder], Snapshot]:
    """Make a function that fills a database into a `Snapshot`.

    The function is called with a `Database` named ``app``, once for each combination of
    PostgreSQL, inputs and source. Its result is kept and restored from then on.

    Args:
        inputs: patterns (as of `glob`, ``**`` included) of all files that the builder reads:
            migrations, seed data, models, and a lock file where the versions of its tools matter.
        version: any text; change it to have the snapshot made again.
        root: the directory that `inputs` are relative to; itself relative to that of the builder's
            file, which it is where it is None.
        initdb_args: arguments for initdb, such as ``--locale=C.UTF-8``.
        settings: server settings, such as ``shared_preload_libraries``.

    Raises:
        SnapshotError: there are no inputs, or one is an absolute path.
    """
    if isinstance(inputs, str):
        inputs = [inputs]
    if not inputs:
        raise SnapshotError(
            "a snapshot without inputs would be served after its schema has changed\n"
            "hint: Name the files that the builder reads, such as inputs=['migrations/**']."
        )
    for pattern in inputs:
        if os.path.isabs(pattern):
            raise SnapshotError(
                f"the input {pattern!r} is an absolute path, which differs between machines\n"
                "hint: Set root to a directory, and name the files relative to it."
            )

    def make(builder: Builder) -> Snapshot:
        name = getattr(builder, "__name__", "")
        if not _NAME.fullmatch(name):
            raise SnapshotError(f"a snapshot takes the name of its function, not {name!r}")
        directory = _directory_of(builder)
        return Snapshot(
            name,
            builder,
            tuple(inputs),
            str(version),
            directory if root is None else (directory / root).resolve(),
            tuple(initdb_args),
            dict(settings or {}),
        )

    return make


def _directory_of(builder: Builder) -> Path:
    try:
        return Path(inspect.getfile(builder)).absolute().parent
    except TypeError as error:
        raise SnapshotError(f"a snapshot's builder is a function, not {builder!r}") from error


EMPTY: Final = Snapshot("empty", None, (), "", Path("/"), (), {})
