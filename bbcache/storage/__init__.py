"""The files on disk, the index of the published ones, and the ledger of all that counts.

`accounting` is the one ledger; `index` has the entries, and the RLock that guards both (memory
only). `files` does the I/O, without a lock. `catalog` changes files and index as one, under its
file lock. Must not import `prepare`, `upkeep` or the engine, which fill, clean and serve it.
"""
