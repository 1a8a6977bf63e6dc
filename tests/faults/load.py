"""A cache under load, to be killed at any moment, and the checks at its next start.

What the life has seen goes into a journal beside the directory, line by line and at
once, so that the next life knows what must still be there:

    tip NAME LSN    the timeline is about to move there, so that older entries may go
    hit NAME LSN    a get has returned the basebackup
    harm NAME LSN   the entry is about to be replaced by a bad copy
"""

from __future__ import annotations

import os
import random
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Final

from faults import fixed_host
from faults.life import PATIENCE_S, Life, Witness, full_settings
from faults.restart import check_evidence

from bbcache import Lsn

if TYPE_CHECKING:
    from collections.abc import Callable

NAMES: Final = tuple(f"{fixed_host.LOAD}{number}" for number in range(6))
_STEP: Final = 0x100
_FULL_AT: Final = 4  # of six


class Journal:
    """What earlier lives have seen, and where this one writes to.

    Args:
        path: of the file; none yet before the first life.
    """

    def __init__(self, path: Path) -> None:
        self.tips = dict.fromkeys(NAMES, fixed_host.LSN_A)
        self.hits: dict[str, Lsn] = {}
        self.locks = {name: threading.Lock() for name in NAMES}  # a hit is written down before harm
        self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        for line in path.read_text().splitlines():
            word, _, rest = line.partition(" ")
            if word in ("tip", "hit", "harm"):
                name, lsn = rest.split()
                self._take(word, name, Lsn(int(lsn)))

    def write(self, line: str) -> None:
        """Append a line, which outlives the process from here on."""
        os.write(self._fd, f"{line}\n".encode())

    def must_be_there(self) -> set[fixed_host.Found]:
        """Entries that were served, and that nobody has had a reason to remove."""
        return {fixed_host.Found(n, lsn) for n, lsn in self.hits.items() if self.tips[n] == lsn}

    def _take(self, word: str, name: str, lsn: Lsn) -> None:
        if word == "tip":
            self.tips[name] = lsn
        elif word == "hit":
            self.hits[name] = lsn
        else:
            self.hits.pop(name, None)


def load(data_dir: Path, witness: Witness, *, journal: str, seed: int) -> None:
    """Check what the life before has left, then work until killed.

    Args:
        data_dir: the directory; that of the life before.
        witness: records everything that must not be.
        journal: path of the journal.
        seed: chooses what is done.
    """
    seen = Journal(Path(journal))
    witness.tell = seen.write
    settings = full_settings(_FULL_AT)
    life = Life(data_dir, dict(seen.tips), witness, verify_reads="always", **settings)
    _check_start(life, seen)
    rng = random.Random(seed)
    jobs: list[Callable[[random.Random], None]] = [
        lambda rng: _get(life, seen, rng),
        lambda rng: _get(life, seen, rng),
        lambda rng: _refresh(life, seen, rng),
        lambda _: life.clean_up(),
        lambda _: life.save_habits(),
        lambda rng: _harm(life, seen, rng),
    ]
    threads = [
        threading.Thread(target=_repeat, args=(job, random.Random(rng.random()), witness))
        for job in jobs
    ]
    for thread in threads:
        thread.start()
    witness.begin_work()
    for thread in threads:
        thread.join()


def _repeat(job: Callable[[random.Random], None], rng: random.Random, witness: Witness) -> None:
    while not witness.wrong and not witness.problems:
        job(rng)
    os._exit(1)  # the journal has the failure


def _check_start(life: Life, seen: Journal) -> None:
    witness = life.witness
    files = fixed_host.entry_files(life.dir)
    witness.expect(life.cache.wait_initialized(PATIENCE_S), "the directory is never loaded")
    newest = {found.name: found for found in sorted(files)}
    witness.expect(set(life.held()) == set(newest.values()), "held is not what is on disk")
    lost = seen.must_be_there() - set(life.held())
    witness.expect(not lost or life.max_entries is not None, f"lost: {lost}")
    for name, lsn in seen.must_be_there() - lost:
        witness.expect(life.read(name, lsn) is not None, f"{name} at {lsn} is not served")
    for name, lsn in life.held():
        life.read(name, lsn)
    life.wait_idle()
    life.check_accounting()
    check_evidence(life)


def _get(life: Life, seen: Journal, rng: random.Random) -> None:
    name = rng.choice(NAMES)
    lsn = seen.tips[name]
    with seen.locks[name]:
        if life.read(name, lsn) is not None and seen.hits.get(name) != lsn:
            seen.hits[name] = lsn
            seen.write(f"hit {name} {int(lsn)}")


def _refresh(life: Life, seen: Journal, rng: random.Random) -> None:
    name = rng.choice(NAMES)
    lsn = seen.tips[name]
    if seen.hits.get(name) == lsn:  # else ask for the same one again
        lsn = Lsn(lsn + _STEP)
        seen.write(f"tip {name} {int(lsn)}")
        seen.tips[name] = lsn
    life.send([name], lsn)
    if rng.random() < 1 / 3:
        life.wait_idle()


def _harm(life: Life, seen: Journal, rng: random.Random) -> None:
    """Put a bad copy in an entry's place, in one step: no reader sees half of it."""
    name = rng.choice(NAMES)
    lsn = seen.tips[name]
    bad = life.dir.parent / "bad-copy"
    bad.write_bytes(fixed_host.flipped(fixed_host.sealed(name, lsn)))
    with seen.locks[name]:
        if seen.hits.get(name) == lsn and rng.random() < 1 / 3:
            seen.write(f"harm {name} {int(lsn)}")
            seen.hits.pop(name)
            bad.rename(life.dir / fixed_host.file_name(name, lsn))
    life.cache.wait_idle(0.001)
