"""Authentication of clients: tokens, the rights in a token, and TLS certificates.

Keys and certificates are replaced as a whole, so no lock is needed. Must not import the server
or its sessions.
"""
