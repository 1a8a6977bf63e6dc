"""A second tier in object storage: S3, Google Cloud Storage, Azure, or a shared file system.

`object_tier` is the face. `bucket` alone knows the engine, obstore, whose calls are made in
threads of their own: never in the main thread, and never in a forked child. `object_format` and
`keys` sign and verify, `breaker` pauses after failures, `upload_queue` and `uploader` bring
archives out. Locks guard memory only. Must not be imported by the core.
"""

from bbcache.errors import MissingExtraError

try:
    import obstore  # noqa: F401
except ImportError as error:
    raise MissingExtraError("bbcache.tier cannot be imported", "tier", error) from error

from bbcache.tier.object_tier import ObjectTier
from bbcache.tier_config import TierConfig

__all__ = ["ObjectTier", "TierConfig"]
