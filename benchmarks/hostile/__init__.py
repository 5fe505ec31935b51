"""Benchmark of the harm that one stolen credential does to its neighbours: see __main__.py and attacks.py."""
