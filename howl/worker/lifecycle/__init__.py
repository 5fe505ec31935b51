"""A worker's life: how it starts, who it is, whether it is well, and how it leaves."""
