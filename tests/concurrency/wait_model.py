"""What the model of a cache knows of LSNs that are not reached, and of `get_or_prepare`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from concurrency.cache_model import AHEAD, ERROR, HIT, NO_ROOM, Model, Waiting
from concurrency.scripted_host import GOOD

from bbcache.archive.format import HEADER_SIZE_BYTES

if TYPE_CHECKING:
    from concurrency.scripted_host import Slot

    from bbcache import BasebackupCacheConfig, Lsn

BUILT: Final = "built"
PATIENT_S: Final = 3600.0  # a wait that no machine is slow enough for


class WaitModel(Model):
    """A model whose prepares may wait for their LSNs.

    Attributes:
        ahead: the prepares that do, by timeline: one step beyond its tip.
    """

    def start(self, config: BasebackupCacheConfig) -> None:
        """A cache has just taken over what is in the directory."""
        self.ahead: dict[int, Waiting] = {}
        super().start(config)

    @property
    def is_patient(self) -> bool:
        """Whether waits last until their LSNs are reached."""
        return self.config.wait_lsn_timeout == PATIENT_S

    @property
    def in_flight_count(self) -> int:
        """Prepares that have not ended."""
        return super().in_flight_count + len(self.ahead)

    def _queue(self, slot: Slot, asked: Waiting, mode: str = GOOD) -> None:
        ahead = self.ahead.get(slot.number)
        if ahead is not None and ahead.lsn == asked.lsn:
            self.outcomes.append("coalesced")
        else:
            super()._queue(slot, asked, mode)

    def _prepare(self, slot: Slot, asked: Waiting, mode: str = GOOD) -> bool:
        outcome = self._judge(slot, asked.lsn, is_rebuild=not asked.is_asked)
        if self.is_patient and outcome == AHEAD:
            self.ahead[slot.number] = asked
            return False
        return super()._prepare(slot, asked, mode)

    def look_ahead(self) -> None:
        """Workers look at what waits for its LSN, beside no build of its timeline."""
        for number in self.ahead.keys() - self.builds.keys():
            self._prepare(self._slots[number], self.ahead.pop(number))

    def fill(self, slot: Slot, lsn: Lsn) -> str:
        """What a `get_or_prepare` gives: `HIT`, `BUILT`, `ERROR`, or `AHEAD` for no end.

        For an undamaged entry, and a timeline of which nothing is built.
        """
        if self.get(slot, lsn) == HIT:
            return HIT
        ahead = self.ahead.get(slot.number)
        if ahead is not None and ahead.lsn == lsn:
            return AHEAD
        outcome = self._judge(slot, lsn, is_rebuild=False)
        if outcome == ERROR or slot.tip < lsn:
            is_left = outcome != ERROR and self.is_patient
            self.outcomes.append("cancelled" if is_left else ERROR)
            return AHEAD if is_left else ERROR
        if outcome is None and self.is_low_on_disk and slot.number not in self.held:
            outcome = NO_ROOM
        if outcome is None and self.evicts and not self.is_roomy:
            self.undecided.append((slot, lsn, slot.archive(lsn)))
            return BUILT
        if outcome is None and not self._may_grow(slot.number, HEADER_SIZE_BYTES):
            outcome = NO_ROOM
        if outcome is None:
            outcome = self._build(slot, lsn, slot.archive(lsn))
            if slot.number in self.held and self.held[slot.number].lsn == lsn:
                self.held[slot.number].is_verified = True  # it is read back for the caller
        self.outcomes.append(outcome)
        return BUILT
