"""The client side of the page service: a basebackup over the network, into a data directory.

`bbcache.fetch.download` has the whole of it. Needs psycopg 3 (``bbcache[fetch]``).
"""
