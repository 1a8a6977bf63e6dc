"""Data directories: their contents, their tarballs, and the way back.

`tarball` inspects and sends a directory, `walk` decides which files are sent, `settings` makes
its configuration portable, and `restore` unpacks a tarball. No lock; nothing here starts
a server. Must not import `bbcache.postgres.server` or the cache.
"""
