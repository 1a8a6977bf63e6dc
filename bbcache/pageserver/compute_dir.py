"""The directories of compute nodes; their names tell a start which timeline they belong to.

Below ``<root>/computes/`` a compute node has:

``<tenant>_<timeline>_<random>``
    its data directory;
``<tenant>_<timeline>_<random>.log``
    its server's log;
``<tenant>_<timeline>_<random>.started``
    a mark that its server was started, so the data directory may hold commits;
    it has the settings of the last start that succeeded, or else of the first start, as JSON.

A directory that initdb makes for a new timeline has a random name of 32 digits.
"""

from __future__ import annotations

import json
import logging
import re
import stat
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self

from bbcache.ids import TenantId, TimelineId
from bbcache.postgres.pgdata.leftovers import remove_tree

_ID: Final = "[0-9a-f]{32}"
_NAME: Final = re.compile(rf"(?P<tenant>{_ID})_(?P<timeline>{_ID})_[0-9a-f]{{8}}")
_OWN_NAME: Final = re.compile(rf"{_ID}(_{_ID}_[0-9a-f]{{8}})?(\.log|\.started|\.starting)?")
_RANDOM_DIGITS: Final = 8
_LOG: Final = ".log"
_STARTED: Final = ".started"
_STARTING: Final = ".starting"  # a `.started` that is being written
_BESIDE: Final = (_LOG, _STARTED, _STARTING)

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ComputeDir:
    """The data directory of one compute node, and the files beside it. Immutable.

    Attributes:
        path: the data directory.
    """

    path: Path

    @classmethod
    def new(cls, computes_dir: Path, tenant_id: TenantId, timeline_id: TimelineId) -> Self:
        """Choose the name for a new compute node of a timeline; create nothing."""
        random = uuid.uuid4().hex[:_RANDOM_DIGITS]
        return cls(computes_dir / f"{tenant_id}_{timeline_id}_{random}")

    @property
    def owner(self) -> tuple[TenantId, TimelineId] | None:
        """The timeline of the copy; None if the name has no ids."""
        match = _NAME.fullmatch(self.path.name)
        if match is None:
            return None
        return TenantId.from_str(match["tenant"]), TimelineId.from_str(match["timeline"])

    @property
    def was_started(self) -> bool:
        """Whether a server may have run there; raises `OSError` if that cannot be read."""
        try:
            self._beside(_STARTED).lstat()
        except FileNotFoundError:
            return False
        return True

    def note_start(self, settings: Mapping[str, str]) -> None:
        """Record that a server is about to start; raises `OSError`."""
        if not self.was_started:
            self._note(settings)

    def note_started(self, settings: Mapping[str, str]) -> None:
        """Record the settings of a server that has started; raises `OSError`.

        The settings of a start that failed are not kept: a recovery could not start with them.
        """
        if self.settings() != settings:
            self._note(settings)

    def _note(self, settings: Mapping[str, str]) -> None:
        self._beside(_STARTING).write_text(json.dumps(dict(settings)))
        self._beside(_STARTING).rename(self._beside(_STARTED))

    def settings(self) -> dict[str, str]:
        """The settings of the last start; empty if a power loss has destroyed them."""
        try:
            found = json.loads(self._beside(_STARTED).read_text())
        except (OSError, ValueError):
            return {}
        return {str(name): str(value) for name, value in found.items()}

    def forget(self) -> None:
        """Remove the files beside a data directory that was taken over, as far as possible."""
        for suffix in _BESIDE:
            try:
                self._beside(suffix).unlink(missing_ok=True)
            except OSError as error:
                log.warning("%s stays: %s", self._beside(suffix), error)

    def remove(self) -> None:
        """Remove the data directory; a kill half-way leaves none that looks usable.

        Raises:
            OSError: it cannot be removed.
        """
        self._beside(_STARTED).unlink(missing_ok=True)
        remove_tree(self.path, timeout_s=0.0)

    def _beside(self, suffix: str) -> Path:
        return self.path.with_name(self.path.name + suffix)


def own_names(computes_dir: Path) -> list[str]:
    """The names below `computes_dir` that have the form of this module."""
    return sorted(path.name for path in computes_dir.iterdir() if _OWN_NAME.fullmatch(path.name))


def compute_dirs(computes_dir: Path) -> list[ComputeDir]:
    """The data directories there, including names whose type cannot be read."""
    paths = (computes_dir / name for name in own_names(computes_dir))
    return [
        ComputeDir(path)
        for path in paths
        if not path.name.endswith(_BESIDE) and may_be_directory(path)
    ]


def may_be_directory(path: Path) -> bool:
    """Whether the path is a directory, not a link to one; True if that cannot be read."""
    try:
        return stat.S_ISDIR(path.lstat().st_mode)
    except FileNotFoundError:
        return False
    except OSError:
        return True
