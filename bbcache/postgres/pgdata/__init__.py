"""Data directories: what is in them, as a tarball and back.

`tarball` inspects and sends one, `walk` decides what of it is sent, `settings` makes its
configuration portable, and `restore` unpacks a tarball again. No lock; nothing here starts
a server. Must not import `bbcache.postgres.server` or the cache.
"""
