"""The page service: basebackups over the network, by the protocol of PostgreSQL's clients.

What a Neon pageserver answers to ``basebackup`` and ``fullbackup``, over any host and
cache: `server` listens, `source` is where the archives come from.
"""
