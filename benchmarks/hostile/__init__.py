"""What one stolen credential does to its neighbours: see __main__.py, and attacks.py for the attacks."""
