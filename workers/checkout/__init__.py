"""Copies of repositories for tasks, and what is collected of them."""
