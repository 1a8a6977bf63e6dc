"""Simulated fleets of timelines, and what a full cache of them keeps under each policy.

`fleets` makes the events, `product` runs the policies of `bbcache.eviction` over them, and
`kernel` many others in C. `python -m benchmarks.fleets --help` says more.
"""
