"""bbcache measured beside its peers, and beside the least work that must be done anyway.

``pytest benchmarks/`` runs all of it. Nothing of the package ``bbcache`` imports it, and
no wheel contains it.
"""
