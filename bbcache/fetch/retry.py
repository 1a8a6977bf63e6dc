"""How often to try, and how long to wait: no I/O."""

from __future__ import annotations

from dataclasses import dataclass

from bbcache.errors import ConfigError

_MOST_S = 7 * 24 * 3600.0


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Pauses that grow, as those of Neon's compute node do (compute_tools/src/compute.rs).

    Each pause is spread by chance from half to one and a half of its length, so that
    many clients of a service that comes back do not return at the same moment.
    Immutable, hence thread-safe.

    Attributes:
        attempt_count: how often to try at most, the first time included.
        timeout_s: how long all attempts and pauses may take together.
        read_timeout_s: how long nothing may come of an archive that has begun to.
        first_pause_s: the pause behind the first attempt, before it is spread.
        growth: how much longer each pause is than the one before.

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
        """How long to wait behind an attempt that has failed.

        Args:
            attempt_number: of the attempt; the first is 1.
            chance: a random number from 0 up to 1.

        Returns:
            Seconds; None where there is no attempt left.
        """
        if attempt_number >= self.attempt_count:
            return None
        return self.first_pause_s * self.growth ** (attempt_number - 1) * (0.5 + chance)
