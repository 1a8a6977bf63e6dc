"""A cache on a real directory beside a model of one, through random steps.

The steps are what hosts, disks, administrators and restarts do; after each of them the cache,
its metrics and its directory are what the model says. Builds run in the cache's own threads:
some are stopped in the middle for many steps, and prepares are left running while other steps
go on.

A normal run takes 1,500 steps, ``HYPOTHESIS_PROFILE=nightly`` sixty thousand. How many there were,
and how prepares and gets ended, is printed, which ``-s`` shows.
"""

from __future__ import annotations

import gzip
import logging
import os
import shutil
from typing import TYPE_CHECKING, Any, Final

import pytest
from concurrency.cache_model import CONTENT, FOLDER, MISSING, SPECIAL
from concurrency.used_cache import LSNS, NUMBERS, UsedCache
from concurrency.wait_model import PATIENT_S
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import initialize, rule, run_state_machine_as_test
from support.shares import IS_NIGHTLY

from bbcache.archive.format import HEADER_SIZE_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

# A life of a cache is a directory, threads and fsyncs: slow by nature, which is all that
# `too_slow` would say. The other health checks stay on, since no step filters its input. There
# is no deadline for an example: how long threads take is the machine's affair. And no database
# of failures, which would need a directory to write to: `print_blob` says how to repeat one.
PROFILE: Final = settings(
    max_examples=1200 if IS_NIGHTLY else 30,
    stateful_step_count=50,
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.too_slow],
    print_blob=True,
)
TIMEOUT_S: Final = 7200 if IS_NIGHTLY else 600  # a failure is made small, which takes long
_REPLACED: Final = ("unlink", "link", "fifo", "folder")
_FOREIGN: Final = ("lost+found", ".DS_Store", "basebackup_old.tar.gz", "core.7", "notes.txt")

ARCHIVES = st.tuples(NUMBERS, LSNS, st.sampled_from(["sealed", "plain", "broken", "junk"]))
LIMITED = st.fixed_dictionaries(
    {
        "wait_lsn_timeout": st.just(0.005),
        "verify_reads": st.sampled_from(["always", "always", "first", "never"]),
        "max_total_size_bytes": st.sampled_from([1 << 30, 1 << 30, 8000, 4000, 1500]),
        "max_size_entries": st.sampled_from([10_000, 10_000, 4, 3, 2]),
        "max_entry_size_bytes": st.sampled_from([None, None, 1200]),
        "prepare_channel_size": st.sampled_from([100, 100, 1]),
        "eviction": st.sampled_from(["return-rate", "return-rate", "oldest", "none"]),
        "min_free_disk_bytes": st.sampled_from([0, 0, 0, 0, 1 << 60]),
    }
)
# Nothing but a tip decides then how a wait ends: what a build takes for a moment does not.
PATIENT = st.fixed_dictionaries(
    {
        "wait_lsn_timeout": st.just(PATIENT_S),
        "verify_reads": st.sampled_from(["always", "first", "never"]),
    }
)
SETTINGS = LIMITED | PATIENT


class CacheMachine(UsedCache):
    """Those steps, and what disks, administrators and restarts do."""

    @initialize(options=SETTINGS)
    def begin(self, options: dict[str, Any]) -> None:
        """The first life, on no directory at all."""
        self.start(options)

    # What disks and administrators do.

    @rule(
        number=NUMBERS,
        kind=st.sampled_from(
            [
                *("header", "body", "zeros", "cut", "tail", "swap"),
                *("unlink", "link", "fifo", "folder"),
            ]
        ),
        place=st.integers(0, 1 << 16),
        is_read=st.tuples(st.booleans(), st.booleans()),
    )
    def damage(self, number: int, kind: str, place: int, is_read: tuple[bool, bool]) -> None:
        """The file of an entry is damaged, in a way that `verify_reads` promises to find."""
        self.settle()
        number = self.some_entry(number)
        if is_read[0]:
            self.get(number, "held", is_kept=True)
        held = self.model.held.get(number)
        if held is None or not self.is_found(number, kind):
            return
        path = self.dir / self.slots[number].name(held.lsn)
        if kind in _REPLACED:
            path.unlink()
            self.replace(path, kind)
        elif kind == "swap":
            self.swap(number, self.some_entry(number + 1))
        else:
            self.write(path, damaged(held.content, kind, place))
            self.model.damage[path.name] = CONTENT
        if is_read[1]:
            self.get(number, "held", is_kept=False)

    def is_found(self, number: int, kind: str) -> bool:
        """Whether damage would be found by the next `get`, by what the design promises."""
        held, verify = self.model.held[number], self.model.config.verify_reads
        if self.slots[number].name(held.lsn) in self.model.damage or not self.model.is_at_path:
            return False
        if kind in ("header", "body", "zeros", "swap"):
            is_read = verify == "always" or not held.is_verified
            return is_read and not held.is_plain and (kind != "body" or verify != "never")
        return True

    def replace(self, path: Path, kind: str) -> None:
        """Put what is no file in the place of an entry."""
        self.model.damage[path.name] = SPECIAL
        if kind == "unlink":
            self.model.damage[path.name] = MISSING
        elif kind == "link":
            path.symlink_to(self.parent / "elsewhere")
        elif kind == "fifo":
            os.mkfifo(path)
        else:
            path.mkdir()
            self.model.damage[path.name] = FOLDER

    def write(self, path: Path, content: bytes | bytearray) -> None:
        """Give a path other bytes; a reader of the old file keeps the old ones."""
        scratch = self.parent / "scratch"
        scratch.write_bytes(content)
        scratch.replace(path)

    def swap(self, *numbers: int) -> None:
        """Two archives change places."""
        if len({*numbers}) == 2 and all(self.is_found(number, "swap") for number in numbers):
            held = [self.model.held[number] for number in numbers]
            for number, own, other in zip(numbers, held, reversed(held), strict=True):
                path = self.dir / self.slots[number].name(own.lsn)
                self.write(path, other.content)
                self.model.damage[path.name] = CONTENT

    @rule(name=st.sampled_from(_FOREIGN), size_bytes=st.integers(0, 500))
    def bring_a_foreign_file(self, name: str, size_bytes: int) -> None:
        """Somebody puts another file or a folder there, or changes one; the next start sees it."""
        self.settle()
        if self.model.is_at_path:
            path = self.dir / name
            path.mkdir(exist_ok=True) if name == "lost+found" else path.write_bytes(
                bytes(size_bytes)
            )
            self.model.foreign.add(name)

    @rule(archive=ARCHIVES)
    def bring_an_archive(self, archive: tuple[int, str, str]) -> None:
        """An administrator copies an archive into the directory; the next start finds it."""
        self.settle()
        self.copy_archive(*archive)

    def copy_archive(self, number: int, which: str, kind: str) -> None:
        """Copy one of this cache, of Neon's, a broken one, or what only has the name of one."""
        slot = self.slots[number]
        lsn = self.lsn_of(slot, which)
        path = self.dir / slot.name(lsn)
        if not self.model.is_at_path or path.name in self.model.names | self.model.damage.keys():
            return
        slot.version += 1
        tar = slot.tar(lsn)
        plain = gzip.compress(tar, mtime=0)
        good = plain if kind in ("plain", "broken") else slot.archive(lsn)
        bad = {"broken": damaged(plain, "body", len(plain) - 4), "junk": tar}
        self.write(path, bad.get(kind, good))
        self.model.known_good[path.name] = good
        self.model.foreign.add(path.name)

    @rule(
        what=st.sampled_from(
            [
                *("foreign files", "foreign files", "folders", "quarantine", "quarantine itself"),
                *("tmp", "lock file", "everything"),
            ]
        )
    )
    def remove(self, what: str) -> None:
        """An administrator removes what is astray, what is bad, or what is the cache's own."""
        self.settle()
        if what == "foreign files":
            for name in self.model.foreign.intersection(_FOREIGN):
                path = self.dir / name
                path.rmdir() if path.is_dir() else path.unlink()
                self.model.foreign.discard(name)
        elif what == "folders":
            self.remove_folders()
        elif what.startswith("quarantine"):
            shutil.rmtree(self.dir / "quarantine", ignore_errors=True)
            if what == "quarantine" and self.model.is_at_path:
                (self.dir / "quarantine").mkdir()
        elif self.model.is_at_path:
            self.lose(what)

    def lose(self, what: str) -> None:
        """Remove the directory, or a part without which builds or the lock are lost."""
        if what == "everything":
            shutil.rmtree(self.dir)
            self.model.lose_directory()
        elif what == "lock file":
            (self.dir / ".bbcache.lock").unlink()
            self.model.is_at_path = False
        else:
            shutil.rmtree(self.dir / "tmp", ignore_errors=True)
            for build in self.model.builds.values():
                build.is_lost = True

    def remove_folders(self) -> None:
        """Remove every folder that has the name of an entry."""
        entries = {self.slots[number].name(held.lsn) for number, held in self.model.held.items()}
        for name in [name for name, damage in self.model.damage.items() if damage == FOLDER]:
            (self.dir / name).rmdir()
            self.model.foreign.discard(name)
            del self.model.damage[name]
            if name in entries:
                self.model.damage[name] = MISSING

    # What restarts do.

    @rule(
        options=SETTINGS,
        is_dropped=st.sampled_from([False, False, True]),
        archives=st.lists(ARCHIVES, max_size=2),
    )
    def restart(
        self, options: dict[str, Any], archives: list[tuple[int, str, str]], *, is_dropped: bool
    ) -> None:
        """Close or drop the cache, whatever is running, and start another: nothing is lost."""
        self.end(is_dropped=is_dropped)
        model = self.model
        before = {} if self.pending else {**model.held}
        for archive in () if self.pending else archives:
            self.copy_archive(*archive)
        if CONTENT in model.damage.values() and options["verify_reads"] == "never":
            options = {**options, "verify_reads": "first"}  # "never" does not promise to find it
        for number, lsns in self.pending.items():
            for lsn in lsns:
                slot = self.slots[number]
                path = self.dir / slot.name(lsn)
                if path.is_file() and path.read_bytes() == slot.archive(lsn):
                    model.known_good[path.name] = slot.archive(lsn)
        damage = model.damage
        self.start(options)
        for number, held in before.items():
            if self.slots[number].name(held.lsn) not in damage:
                assert model.held[number].lsn >= held.lsn


def damaged(content: bytes, kind: str, place: int) -> bytes:
    """The bytes of an archive with a bit flipped, zeroed, cut short or with a tail."""
    if kind == "zeros":
        return bytes(len(content))
    if kind == "cut":
        return content[: place % len(content)]
    if kind == "tail":
        return content + bytes(1 + place % 100)
    start, end = (0, HEADER_SIZE_BYTES) if kind == "header" else (HEADER_SIZE_BYTES, len(content))
    flipped = bytearray(content)
    flipped[start + place % (end - start)] ^= 1 << place % 8
    return bytes(flipped)


@pytest.fixture
def _without_log(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What goes wrong on purpose is logged, with a traceback, thousands of times.

    And it pauses no `get_or_prepare`, since no model knows the time.
    """
    monkeypatch.setattr("bbcache.prepare.backoff.FIRST_PAUSE_S", 0.0)
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.slow
@pytest.mark.usefixtures("_without_log")
@pytest.mark.timeout(TIMEOUT_S)
def test_a_cache_is_what_its_model_says() -> None:
    """Through hosts that fail, damage, clean-up, limits and restarts a cache is like its model."""
    run_state_machine_as_test(CacheMachine, settings=PROFILE)
    print(f"\n{dict(sorted(CacheMachine.totals.items()))}")  # noqa: T201 - they are part of the result
