"""From a request to a published archive.

`queue` (its own lock, memory only) holds requests in the order of `line` and settles each as its
`ending` says, `worker` runs one, `builder` writes and publishes one archive, and `on_demand`
waits for a build. No lock is held while the host or the disk is asked. Must not import
`upkeep`, the engine or the cache.
"""
