"""The bytes of one archive. Knows no file names, and takes no lock of the cache.

An archive is one gzip member with a seal in its header (`format`). `deflate` compresses its
body; `tar_head` refuses a body that is not a tarball. Must not import any other room.
"""
