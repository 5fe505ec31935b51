"""The server, the persistent side of HOWL, which keeps the record."""
