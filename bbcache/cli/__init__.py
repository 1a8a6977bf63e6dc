"""The ``bbcache`` command."""
