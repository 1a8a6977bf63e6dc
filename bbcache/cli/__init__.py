"""The ``bbcache`` command."""

from bbcache.cli.main import main

__all__ = ["main"]
