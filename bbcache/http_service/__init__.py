"""A page of status, metrics and health over HTTP, beside a page service.

It only reads, and knows no secrets. It has no authentication: its address decides who sees it.
Its lock guards the set of connections. Must not import the command line.
"""
