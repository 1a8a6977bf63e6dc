"""What a cache must hold and answer after any steps: a model without threads or locks.

It is told what was done to the directory, and predicts by the design's rules. Every answer
is exact, but for the choice of the policy of eviction: where there may be too little room, a
prepare is `undecided`, and what the cache has done is taken over. `NO_ROOM` stands for the skips
`full`, `too_big`, `declined` and `low_disk`.
"""

from __future__ import annotations

import os
import re
import stat
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from concurrency.scripted_host import FAILURES, GOOD, STOPS, TIP_MOVES

from bbcache import BasebackupCacheConfig, Lsn, TenantState
from bbcache.archive.format import HEADER_SIZE_BYTES

if TYPE_CHECKING:
    from collections.abc import Collection, Sequence

    from concurrency.scripted_host import Build, ScriptedHost, Slot

OK, ERROR, NO_ROOM, AHEAD = "ok", "error", "no room", "ahead"
MISSING, FOLDER, SPECIAL, CONTENT = "missing", "folder", "special", "content"
HIT, MISS = "hit", "miss"
OWN_NAMES: Final = {"tmp", "quarantine", ".bbcache.lock", ".bbcache.habits"}
ENTRY_NAME: Final = re.compile(
    r"basebackup_(?P<key>[0-9a-f]{32}_[0-9a-f]{32})_(?P<lsn>[0-9A-F]{16})\.tar\.gz"
)
_QUARANTINE_KEEPS: Final = 8
_MOST_PLANNED_BYTES: Final = 4000  # more than any archive here has, or is planned to have


@dataclass
class Held:
    """An entry as the index must have it.

    Attributes:
        lsn: its LSN.
        size_bytes: as indexed.
        content: what a hit must give.
        is_verified: whether its bytes were checked in this life of the cache.
        is_plain: whether it has no seal, as Neon writes it.
    """

    lsn: Lsn
    size_bytes: int
    content: bytes
    is_verified: bool = False
    is_plain: bool = False


class Waiting(NamedTuple):
    """A prepare in the queue.

    Attributes:
        lsn: the LSN that is wanted.
        is_asked: by the host; False for the rebuild of a bad archive.
    """

    lsn: Lsn
    is_asked: bool = True


class Model:
    """One life of a cache on a directory.

    Attributes:
        held: the entries, by timeline.
        damage: the damage of files under entries' names.
        known_good: every archive that may be served, by name.
        builds: builds stopped in the middle, by timeline.
        waiting: prepares that are queued behind them, by timeline and LSN.
        outcomes: how the prepares ended that were predicted since last taken.
        foreign: names in the directory that are no entries.
        is_at_path: whether the directory still has the lock file that is held.
        undecided: prepares whose end depends on the policy of eviction.
        pinned: timelines whose entries must not be evicted.
    """

    def __init__(
        self,
        data_dir: str,
        slots: Sequence[Slot],
        host: ScriptedHost,
        known_good: dict[str, bytes],
    ) -> None:
        self._dir = data_dir
        self._slots = slots
        self._host = host
        self.known_good = known_good
        self.damage: dict[str, str] = {}
        self.outcomes: list[str] = []
        self.undecided: list[tuple[Slot, Lsn, bytes]] = []

    def start(self, config: BasebackupCacheConfig) -> None:
        """A cache has just taken over what is in the directory."""
        self.config = config
        total = config.max_total_size_bytes
        self._max_entry_bytes = min(config.max_entry_size_bytes or total, total)
        self.builds: dict[int, Build] = {}
        self.waiting: dict[int, dict[Lsn, Waiting]] = {}
        self.pending_unlinks: dict[str, int] = {}
        self.pinned: set[int] = set()
        self.rescan()

    def rescan(self) -> None:
        """Entries and foreign files are what is in the directory; older entries go."""
        self.is_at_path = True
        self.held: dict[int, Held] = {}
        self.foreign_files: dict[str, int] = {}
        self.damage = {}
        names = os.listdir(self._dir) if os.path.isdir(self._dir) else []
        for name in sorted(names):  # by LSN, for one timeline
            status = os.lstat(os.path.join(self._dir, name))
            if name in OWN_NAMES:
                continue
            if ENTRY_NAME.fullmatch(name) and stat.S_ISREG(status.st_mode):
                self._take_over(name, status.st_size)
                continue
            self.foreign_files[name] = status.st_size if stat.S_ISREG(status.st_mode) else 0
            if ENTRY_NAME.fullmatch(name) and stat.S_ISDIR(status.st_mode):
                self.damage[name] = FOLDER
        self.foreign = set(self.foreign_files)
        self.quarantine_bytes = sum(self._quarantined().values())

    def _take_over(self, name: str, size_bytes: int) -> None:
        match = ENTRY_NAME.fullmatch(name)
        assert match is not None
        slot = next(s for s in self._slots if s.key.hex("_", 16) == match["key"])
        with open(os.path.join(self._dir, name), "rb") as file:
            content = file.read()
        good = self.known_good.get(name)
        if slot.number in self.held:
            self.damage.pop(slot.name(self.held[slot.number].lsn), None)
        if content != good:
            self.damage[name] = CONTENT
        is_plain = content[3:4] == b"\0"
        lsn = Lsn(int(match["lsn"], 16))
        self.held[slot.number] = Held(lsn, size_bytes, good or b"", is_plain=is_plain)

    # What counts against the limits.

    @property
    def entries_bytes(self) -> int:
        """Bytes of the entries."""
        return sum(held.size_bytes for held in self.held.values())

    @property
    def nonentry_bytes(self) -> int:
        """Bytes of foreign files, pending unlinks and quarantine."""
        return (
            sum(self.foreign_files.values())
            + sum(self.pending_unlinks.values())
            + self.quarantine_bytes
        )

    @property
    def total_bytes(self) -> int:
        """All bytes; a stopped build has written the header."""
        building = sum(self._charge(number, HEADER_SIZE_BYTES) for number in self.builds)
        return self.entries_bytes + self.nonentry_bytes + building

    @property
    def total_count(self) -> int:
        """All files."""
        new = sum(number not in self.held for number in self.builds)
        return len(self.held) + len(self.foreign_files) + len(self.pending_unlinks) + new

    def _charge(self, number: int, size_bytes: int) -> int:
        held = self.held.get(number)
        return max(0, size_bytes - (held.size_bytes if held else 0))

    @property
    def evicts(self) -> bool:
        """Whether entries may go for new ones."""
        return self.config.eviction != "none"

    @property
    def is_low_on_disk(self) -> bool:
        """Whether the disk has less free space than is to be left."""
        return bool(self.config.min_free_disk_bytes)

    @property
    def is_over_limit(self) -> bool:
        """Whether a clean-up has to shrink the cache."""
        config = self.config
        is_over = self.total_count > config.max_size_entries
        return is_over or self.total_bytes > config.max_total_size_bytes

    @property
    def is_roomy(self) -> bool:
        """Whether any archive fits, whatever size it is planned to have."""
        config = self.config
        has_slot = self.total_count < config.max_size_entries
        most_bytes = self.total_bytes + _MOST_PLANNED_BYTES
        return has_slot and most_bytes <= config.max_total_size_bytes

    def _has_room(self) -> bool:
        has_slot = self.total_count < self.config.max_size_entries
        return has_slot and self.total_bytes < self.config.max_total_size_bytes

    def _may_grow(self, number: int, size_bytes: int, charged_bytes: int = 0) -> bool:
        """Whether a build may have `size_bytes`, of which some are charged already."""
        charge = self._charge(number, size_bytes)
        others = self.total_bytes - charged_bytes
        is_full = charge > charged_bytes and others + charge > self.config.max_total_size_bytes
        return size_bytes <= self._max_entry_bytes and not is_full

    @property
    def in_flight_count(self) -> int:
        """Prepares that have not ended."""
        return len(self.builds) + sum(map(len, self.waiting.values()))

    # What actions do.

    def ask(self, slot: Slot, lsn: Lsn, mode: str = GOOD) -> None:
        """A prepare was asked for, and runs as far as it gets."""
        build = self.builds.get(slot.number)
        if build is not None and build.lsn >= lsn:
            self.outcomes.append("coalesced")
        else:
            self._queue(slot, Waiting(lsn), mode)

    def _queue(self, slot: Slot, asked: Waiting, mode: str = GOOD) -> None:
        """A request waits if a build of its timeline has stopped, else it runs."""
        waiting = self.waiting.get(slot.number, {})
        if asked.lsn in waiting:
            waiting[asked.lsn] = max(asked, waiting[asked.lsn])
            self.outcomes.append("coalesced")
        elif not waiting and len(self.waiting) >= self.config.prepare_channel_size:
            self.outcomes.append("queue_full")
        elif slot.number in self.builds:
            self.waiting.setdefault(slot.number, {})[asked.lsn] = asked
        else:
            self._prepare(slot, asked, mode)

    def _prepare(self, slot: Slot, asked: Waiting, mode: str = GOOD) -> bool:
        """Run a prepare as far as it gets; whether its build was begun."""
        lsn = asked.lsn
        outcome = self._judge(slot, lsn, is_rebuild=not asked.is_asked)
        is_begun, outcome = outcome is None, ERROR if outcome == AHEAD else outcome
        if outcome is None and not self.is_at_path:
            self.rescan()
        if outcome is None and self.is_low_on_disk and slot.number not in self.held:
            outcome = NO_ROOM
        if outcome is None and self.evicts and not self.is_roomy:
            self.undecided.append((slot, lsn, slot.archive(lsn)))
            return is_begun
        if outcome is None and slot.number not in self.held and not self._has_room():
            outcome = NO_ROOM
        if outcome is None and not self._may_grow(slot.number, HEADER_SIZE_BYTES):
            outcome = NO_ROOM
        if outcome is None and mode == STOPS:
            assert slot.build is not None
            self.builds[slot.number] = slot.build
        else:
            self.outcomes.append(outcome or self._build(slot, lsn, slot.archive(lsn), mode))
        return is_begun

    def _judge(self, slot: Slot, lsn: Lsn, *, is_rebuild: bool) -> str | None:
        """How a prepare ends before anything is built; None where it does not."""
        held, trouble = self.held.get(slot.number), self._trouble(slot, is_rebuild=is_rebuild)
        if trouble is not None:
            return trouble
        if held is not None and held.lsn >= lsn:
            return "up_to_date"
        if slot.tip > lsn or (is_rebuild and slot.tip != lsn):
            return "tip_moved"
        if held is None and not (self.evicts or self._has_room()):
            return NO_ROOM
        return AHEAD if slot.tip < lsn else None

    def _trouble(self, slot: Slot, *, is_rebuild: bool) -> str | None:
        """How a prepare ends because of what the host says of its tenant and timeline."""
        host, tenant = self._host, slot.tenant
        is_silent = host.failure is not None or (is_rebuild and not host.is_ready)
        if is_silent or host.tenants.get(tenant.tenant_shard_id) is None:
            return ERROR
        if not tenant.is_cache_enabled:
            return "disabled"
        is_known = slot.timeline.timeline_id in tenant.timelines
        return None if is_known and tenant.state is TenantState.ACTIVE else ERROR

    def _build(
        self, slot: Slot, lsn: Lsn, archive: bytes, mode: str = GOOD, charged_bytes: int = 0
    ) -> str:
        if mode in FAILURES:
            return ERROR
        if not self._may_grow(slot.number, len(archive), charged_bytes):
            return NO_ROOM
        if mode == TIP_MOVES or slot.tip > lsn:
            return "tip_moved"
        if not self.is_at_path or self.damage.get(slot.name(lsn)) == FOLDER:
            return ERROR
        self.publish(slot, lsn, archive)
        return OK

    def publish(self, slot: Slot, lsn: Lsn, archive: bytes) -> None:
        """An archive was put in its place."""
        name, old = slot.name(lsn), self.held.get(slot.number)
        is_verified = self.config.verify_reads == "never"
        self.held[slot.number] = Held(lsn, len(archive), archive, is_verified)
        self.known_good[name] = archive
        self.foreign.discard(name)
        self.damage.pop(name, None)
        self.pending_unlinks.pop(name, None)
        self.foreign_files.pop(name, None)
        if old is not None and old.lsn != lsn:
            self._remove_file(slot.name(old.lsn), old.size_bytes)

    def remove(self, slot: Slot) -> None:
        """An entry was removed."""
        held = self.held.pop(slot.number)
        self._remove_file(slot.name(held.lsn), held.size_bytes)

    def lose_directory(self) -> None:
        """Somebody has removed the whole directory."""
        self.is_at_path = False
        self.foreign.clear()
        self.damage = {
            s.name(self.held[s.number].lsn): MISSING for s in self._slots if s.number in self.held
        }
        for build in self.builds.values():
            build.is_lost = True

    def _remove_file(self, name: str, size_bytes: int) -> None:
        if self.damage.get(name) == FOLDER:
            self.pending_unlinks.setdefault(name, size_bytes)
        else:
            self.damage.pop(name, None)

    def check_cancelled(self, slot: Slot) -> None:
        """A stopped build goes on, and then what waited behind it."""
        charged_bytes = self._charge(slot.number, HEADER_SIZE_BYTES)
        build = self.builds[slot.number]
        if self.evicts and not self.is_roomy:
            del self.builds[slot.number]
            self.undecided.append((slot, build.lsn, build.archive))
            for lsn in self.waiting.pop(slot.number, {}):
                self.undecided.append((slot, lsn, slot.archive(lsn)))
            return
        is_at_path, self.is_at_path = self.is_at_path, self.is_at_path and not build.is_lost
        outcome = self._build(slot, build.lsn, build.archive, charged_bytes=charged_bytes)
        self.is_at_path = is_at_path
        del self.builds[slot.number]
        self.outcomes.append(outcome)
        waiting = self.waiting.pop(slot.number, {})
        while waiting:  # the newest first, which covers the others where it is built
            if self._prepare(slot, waiting.pop(max(waiting))):
                self.outcomes += ["coalesced"] * len(waiting)
                waiting.clear()

    def get(self, slot: Slot, lsn: Lsn) -> str:
        """What a `get` must give: `HIT`, `MISS` or `ERROR`; a bad entry is taken out."""
        held = self.held.get(slot.number)
        if held is None or held.lsn != lsn:
            return MISS
        damage = self.damage.get(slot.name(lsn))
        if damage is None:
            held.is_verified = True
            return HIT
        if damage == MISSING and self.is_at_path:
            del self.held[slot.number], self.damage[slot.name(lsn)]
            return MISS
        if self.is_at_path:
            self._quarantine(slot, held)
        return ERROR

    def _quarantine(self, slot: Slot, held: Held) -> None:
        """A bad entry is taken out; its file is kept, unless its timeline is built now."""
        name = slot.name(held.lsn)
        files = [(path, size, os.path.isdir(path)) for path, size in self._quarantined().items()]
        files.sort()
        del self.held[slot.number]
        if slot.number in self.builds:
            self._remove_file(name, held.size_bytes)
        else:
            path = os.path.join(self._dir, name)
            files.append((path, _regular_bytes(path), False))
            self.damage.pop(name)
        over = len(files) - _QUARANTINE_KEEPS
        kept = [size for at, (_, size, is_folder) in enumerate(files) if at >= over or is_folder]
        self.quarantine_bytes = sum(kept)
        self._queue(slot, Waiting(held.lsn, is_asked=False))

    def clean_up(self, undecided: Collection[int] = ()) -> None:
        """A clean-up step: outgrown entries are removed, pending unlinks tried again.

        Args:
            undecided: timelines whose prepares are running meanwhile.
        """
        if not self.is_at_path:
            self.rescan()
        if self._host.failure is None and self._host.is_ready:
            self._pin()
            for slot in self._slots:
                held = None if slot.number in undecided else self.held.get(slot.number)
                if held is not None and self.is_outgrown(slot, held.lsn):
                    self.remove(slot)
        self.pending_unlinks = {
            n: size for n, size in self.pending_unlinks.items() if self.damage.get(n) == FOLDER
        }
        foreign_files = {name: os.path.join(self._dir, name) for name in self.foreign_files}
        self.foreign_files = {
            n: _regular_bytes(path) for n, path in foreign_files.items() if os.path.lexists(path)
        }
        self.quarantine_bytes = sum(self._quarantined().values())

    def _pin(self) -> None:
        """Ask the tenants for their pins, which may take half of each limit."""
        wanted = {
            slot.number
            for slot in self._slots
            if slot.number in self._host.pinned
            and self._host.tenants.get(slot.tenant.tenant_shard_id) is not None
        }
        files = self.config.max_size_entries // 2
        left_bytes = self.config.max_total_size_bytes // 2
        accepted: set[int] = set()
        for slot in sorted(self._slots, key=lambda s: (s.number not in self.pinned, s.key)):
            held = self.held.get(slot.number)
            size_bytes = held.size_bytes if held else 0
            if slot.number in wanted and len(accepted) < files and size_bytes <= left_bytes:
                accepted.add(slot.number)
                left_bytes -= size_bytes
        self.pinned = accepted

    def take_over_quarantine(self, nonentry_bytes: int) -> None:
        """Take over how much of the quarantine an eviction has removed."""
        left_bytes = self.quarantine_bytes + nonentry_bytes - self.nonentry_bytes
        assert sum(self._quarantined().values()) <= left_bytes <= self.quarantine_bytes
        self.quarantine_bytes = left_bytes

    def is_outgrown(self, slot: Slot, lsn: Lsn) -> bool:
        """Whether the host says that an entry is of no more use."""
        if self._host.tenants.get(slot.tenant.tenant_shard_id) is None:
            return True
        is_known = slot.timeline.timeline_id in slot.tenant.timelines
        return slot.tenant.state is TenantState.ACTIVE and not (is_known and slot.tip <= lsn)

    @property
    def names(self) -> set[str]:
        """Everything that must be in the directory, `OWN_NAMES` aside."""
        entries = {s.name(self.held[s.number].lsn) for s in self._slots if s.number in self.held}
        missing = {name for name, damage in self.damage.items() if damage == MISSING}
        folders = {name for name, damage in self.damage.items() if damage == FOLDER}
        return (entries - missing) | folders | self.foreign

    def _quarantined(self) -> dict[str, int]:
        folder = os.path.join(self._dir, "quarantine")
        names = os.listdir(folder) if os.path.isdir(folder) else []
        paths = [os.path.join(folder, name) for name in names]
        return {path: _regular_bytes(path) for path in paths}


def _regular_bytes(path: str) -> int:
    status = os.lstat(path)
    return status.st_size if stat.S_ISREG(status.st_mode) else 0
