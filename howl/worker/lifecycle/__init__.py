"""A worker's life cycle: how it starts, its identity, its health, and how it leaves."""
