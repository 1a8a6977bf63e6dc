"""The ``bbcache`` command: a module for each subcommand, and the parts that they share.

No other room imports this one, and only this one prints. It takes no lock.
"""

from bbcache.cli.main import main

__all__ = ["main"]
