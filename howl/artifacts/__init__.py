"""Artifacts, the files that tasks produce: storing and fetching them."""
