"""PostgreSQL from the outside: its WAL, its data directories, its programs.

The rooms below know no cache, and take no lock of one. Must not import the cache or its rooms.
"""
