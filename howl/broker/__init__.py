"""Redis as a queue."""
