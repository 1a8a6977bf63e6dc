"""From a request to a published archive.

`queue` (its own lock, memory only) keeps requests in the order of `line` and settles each,
`worker` runs one, `builder` writes and publishes one archive, `fetcher` asks the second tier for
one, and `on_demand` waits for a build. No lock is held during a callback of the host or a step on
the disk. Must not import `upkeep`, the engine or the cache.
"""
