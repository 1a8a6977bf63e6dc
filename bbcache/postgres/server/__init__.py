"""PostgreSQL's own programs: found, run as a user that may run them, started and stopped.

`binaries` finds an installation, `cluster` is one data directory with its server, and
`start_check` tries whether a copy of one starts. Must not import the cache.
"""
