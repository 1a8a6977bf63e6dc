"""What to keep when the directory is full: how likely each timeline is to start again.

Pure arithmetic: no lock, no I/O, no clock. The caller gives the time to every method, and holds
a lock around it; so a simulator drives a policy as a cache does. Must not import `storage`,
`prepare` or `upkeep`: they know a policy by its methods only.
"""

from __future__ import annotations

from bbcache.eviction.habits import Habits, Regularity
from bbcache.eviction.plain import Never, Oldest
from bbcache.eviction.policy import Policy
from bbcache.eviction.return_rate import ReturnRate

__all__ = ["Habits", "Never", "Oldest", "Policy", "Regularity", "ReturnRate"]
