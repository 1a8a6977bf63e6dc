"""bbcache measured beside its peers, and beside the least work that must be done anyway.

What ``bbcache bench`` runs. Nothing of the cache imports it.
"""
