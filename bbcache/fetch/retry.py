"""How often to try and how long to wait; no I/O."""

from __future__ import annotations

from dataclasses import dataclass

from bbcache.errors import ConfigError

_MOST_S = 7 * 24 * 3600.0


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Pauses that grow, as those of Neon's compute node do (compute_tools/src/compute.rs).

    Each pause is multiplied by a random factor from 0.5 to 1.5, so that
    the clients of a service that was restarted do not return at the same moment.
    Immutable, hence thread-safe.

    Attributes:
        attempt_count: attempts at most, including the first.
        timeout_s: limit for all attempts and pauses together.
        read_timeout_s: seconds without data after which an attempt fails.
        first_pause_s: the pause after the first attempt, before the random factor.
        growth: the ratio of each pause to the one before.

    Raises:
        ConfigError: (a `ValueError`) for a bad value, by name, value and range.
    """

    attempt_count: int = 11
    timeout_s: float = 600.0
    read_timeout_s: float = 60.0
    first_pause_s: float = 0.5
    growth: float = 1.5

    def __post_init__(self) -> None:
        if self.attempt_count < 1:
            raise ConfigError(f"attempt_count is {self.attempt_count}, but must be at least 1")
        for name in ("timeout_s", "read_timeout_s"):
            value = getattr(self, name)
            if not 0 < value <= _MOST_S:
                raise ConfigError(f"{name} is {value}, but must be above 0, at most {_MOST_S:g}")

    def pause_s(self, attempt_number: int, chance: float) -> float | None:
        """How long to wait after a failed attempt.

        Args:
            attempt_number: of the attempt; the first is 1.
            chance: a random number from 0 up to 1.

        Returns:
            Seconds; None if no attempt is left.
        """
        if attempt_number >= self.attempt_count:
            return None
        return self.first_pause_s * self.growth ** (attempt_number - 1) * (0.5 + chance)
