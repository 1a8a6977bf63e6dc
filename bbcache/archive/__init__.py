"""The bytes of one archive. Knows no file names, and takes no lock of the cache.

An archive is one gzip member with a seal in its header (`format`). `writer` makes one of the
writes of a host, by `deflate`; `tar_head` refuses a body that is not a tarball; `incoming` checks
an archive that arrives from elsewhere. Must not import any other room.
"""
