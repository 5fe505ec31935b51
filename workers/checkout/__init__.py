"""Checkouts of repositories for tasks, and the collection of what tasks leave there."""
