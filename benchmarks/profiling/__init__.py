"""Where the time of a bar goes: a sampling profile of it, by steps that a reader knows.

``python -m benchmarks.profiling NAME`` or ``tox -e profile -- NAME``. The bars are those
of `bbcache.bench`, run by the very same code; py-spy samples them from outside.
"""
