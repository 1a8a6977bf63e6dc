"""Authentication of clients: tokens, what they allow, and TLS."""
