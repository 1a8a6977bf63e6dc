"""The bytes of one archive: its format, and its parts that know nothing of files or threads.

An archive is one gzip member with a seal in its header (`format`), whose body `deflate`
compresses; `tar_head` refuses what is no tarball. No lock is taken here. Must not import
any other room.
"""
