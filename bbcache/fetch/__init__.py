"""The client side of the page service: a basebackup over the network, into a data directory.

`bbcache.fetch.download.fetch_basebackup` is the public function. It needs psycopg 3
(``bbcache[fetch]``). A fetch runs in its caller's thread; a `flock` on the staging directory keeps
other processes from it. Must not import the cache or the services.
"""
