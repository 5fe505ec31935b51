"""The server, which keeps the record."""
