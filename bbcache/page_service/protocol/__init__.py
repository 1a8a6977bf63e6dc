"""The messages of the page service, without a socket: bytes in, bytes and decisions out.

No lock and no I/O. Must not import anything else of the page service but its errors.
"""
