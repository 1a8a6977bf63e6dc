"""The reference host: a small pageserver whose timelines are PGDATA directories."""
