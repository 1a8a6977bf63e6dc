"""What lies on disk, and the accounting of it.

`accounting` is the one ledger of every byte that counts. `index` has the entries, and the
RLock under which both change (memory only). `files` does the I/O without a lock. `catalog`
orders steps on the disk by its file lock, and tells index and ledger what happened.
Must not import the rooms that fill, serve or clean it: `prepare`, `upkeep`, the engine.
"""
