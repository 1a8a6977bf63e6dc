"""What lies on disk, and the accounting of it.

`accounting` is arithmetic, `index` guards it by its RLock (memory only), `files` does the
I/O without a lock, and `catalog` changes a file and the index as one, under its file lock.
Must not import the rooms that fill, serve or clean it: `prepare`, `upkeep`, the engine.
"""
