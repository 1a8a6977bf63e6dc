"""The adoption, at a start, of compute nodes whose pageserver was killed.

Their servers may still be running, and may have acknowledged commits that are nowhere else.
So a start stops each server, lets PostgreSQL recover its directory, and takes the directory
over into its timeline. It removes only directories that belong to no timeline or whose server
was never started.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Final

from bbcache.errors import (
    BbcacheError,
    PostgresError,
    StoreError,
    TakeoverError,
    safe_str,
)
from bbcache.ids import TenantId, TimelineId
from bbcache.pageserver.compute_dir import (
    ComputeDir,
    compute_dirs,
    may_be_directory,
    own_names,
)
from bbcache.pageserver.next_start import check_next_start
from bbcache.pageserver.takeover import finish_takeover, take_over
from bbcache.pageserver.tenants import PgdataTenantManager
from bbcache.postgres.pgdata.control_file import ClusterState, ControlFile
from bbcache.postgres.pgdata.settings import make_portable
from bbcache.postgres.pgdata.tarball import check_sendable
from bbcache.postgres.server.cluster import Cluster, PostgresBinaries
from bbcache.postgres.server.orphan import end_server

_RECOVERY_TIMEOUT_S: Final = 3600.0

log = logging.getLogger(__name__)


class Adoption:
    """Adopts or removes the compute nodes that a start finds. Not thread-safe; for one start.

    Args:
        computes_dir: the directory of all compute nodes.
        binaries: PostgreSQL's programs; None looks for them when they are needed.
        tenants: the tenants, none of them attached yet.
    """

    def __init__(
        self,
        computes_dir: Path,
        binaries: PostgresBinaries | None,
        tenants: PgdataTenantManager,
    ) -> None:
        self._computes_dir = computes_dir
        self._binaries = binaries
        self._tenants = tenants
        self._found: dict[tuple[TenantId, TimelineId], list[ComputeDir]] = {}

    def run(self) -> None:
        """Take over the directories that hold commits of a timeline, and remove the others.

        After a failure the directory stays, and its timeline is broken.

        Raises:
            StoreError: the directory of the compute nodes cannot be listed.
        """
        try:
            for directory in compute_dirs(self._computes_dir):
                if directory.owner is not None and self._is_wanted(directory):
                    self._found.setdefault(directory.owner, []).append(directory)
            self._sweep()  # first, because a recovery may need the space
        except OSError as error:
            raise StoreError(
                f"the compute nodes in {self._computes_dir} cannot be listed: {error.strerror}",
                errno=error.errno,
            ) from error
        for owner, found in self._found.items():
            try:
                self._adopt_any(owner, found)
            except Exception as error:  # noqa: BLE001 - one must not keep others from being served
                log.error("%s", safe_str(error))  # noqa: TRY400 - its lines are the server's log
                self._tenants.break_timeline(*owner, error)

    def _is_wanted(self, directory: ComputeDir) -> bool:
        """Whether the directory may hold commits of a timeline that exists."""
        try:
            assert directory.owner is not None
            return directory.was_started and self._tenants.find_place(*directory.owner) is not None
        except Exception:  # noqa: BLE001 - unknown is not gone, and one must not end the start
            return True

    def _sweep(self) -> None:
        """Remove directories that hold no commits of a timeline; log those that cannot be removed.

        Only names of this module's form are removed: other programs may have used the root.
        """
        wanted = {each.path.name for found in self._found.values() for each in found}
        for directory in compute_dirs(self._computes_dir):
            if directory.path.name not in wanted:
                self._remove(directory)
        for name in own_names(self._computes_dir):
            path = self._computes_dir / name
            if name.partition(".")[0] not in wanted and not may_be_directory(path):
                self._unlink(path)

    def _adopt_any(self, owner: tuple[TenantId, TimelineId], found: list[ComputeDir]) -> None:
        """Stop the servers of a timeline's compute nodes; if there is one only, take it over."""
        for directory in found:
            try:
                end_server(directory.path)
                if len(found) == 1:
                    self._adopt(directory, owner)
            except Exception as error:
                path, reason = str(directory.path), safe_str(error)
                raise TakeoverError(str(owner[1]), path, reason) from error
        if len(found) > 1:
            names = " and ".join(str(directory.path) for directory in found)
            raise PostgresError(
                f"{names} may each have the last commits of timeline {owner[1]}\n"
                "hint: Move away all but the right one, and start the pageserver again."
            )

    def _adopt(self, directory: ComputeDir, owner: tuple[TenantId, TimelineId]) -> None:
        log.info("taking over %s, left by a pageserver that was killed", directory.path)
        place = self._tenants.find_place(*owner)
        if place is None:
            raise PostgresError(f"timeline {owner[1]} was removed meanwhile")
        finish_takeover(place)
        if ControlFile.read(directory.path).state is not ClusterState.SHUT_DOWN:
            self._recover(directory)
        check_sendable(directory.path)
        check_next_start(directory.path, place, self._programs(directory), directory.settings())
        take_over(directory.path, place)
        directory.forget()

    def _recover(self, directory: ComputeDir) -> None:
        """Start a server, which replays the WAL, and shut it down; it lets no client in."""
        make_portable(directory.path)
        settings = {**directory.settings(), "listen_addresses": ""}
        settings.pop("unix_socket_directories", None)  # a private one instead
        with Cluster(self._programs(directory), directory.path, settings=settings) as cluster:
            cluster.start(timeout_s=_RECOVERY_TIMEOUT_S)
            cluster.stop(timeout_s=_RECOVERY_TIMEOUT_S)

    def _programs(self, directory: ComputeDir) -> PostgresBinaries:
        return self._binaries or PostgresBinaries.find(
            major=ControlFile.read(directory.path).major_version
        )

    def _unlink(self, path: Path) -> None:
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("cannot remove %s, which is not needed: %s", path, error)

    def _remove(self, directory: ComputeDir) -> None:
        try:
            end_server(directory.path)
            directory.remove()
        except (BbcacheError, OSError) as error:
            log.warning("cannot remove %s, which is not needed: %s", directory.path, error)
