"""PostgreSQL's programs: find them, run them as a suitable user, start and stop a server.

`binaries` finds an installation, `cluster` is one data directory with its server, and
`start_check` checks that a copy of a directory starts. Must not import the cache.
"""
