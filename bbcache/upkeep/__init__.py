"""What a cache does by itself, in its background thread.

`startup` loads the directory. `cleanup` removes outgrown entries: it asks the host without a
lock, and removes under the catalog's file lock. Must not import `prepare` or the engine.
"""
