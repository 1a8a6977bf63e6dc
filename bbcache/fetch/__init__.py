"""The client side of the page service: a basebackup over the network, into a data directory.

`bbcache.fetch.download.fetch_basebackup` is the public function. It needs psycopg 3
(``bbcache[fetch]``).
"""
