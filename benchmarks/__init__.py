"""Benchmarks of bbcache beside its peers and beside the least work there is; see README.md."""
