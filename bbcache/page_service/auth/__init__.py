"""Who a client of the page service is, and what it may read: tokens and TLS."""
