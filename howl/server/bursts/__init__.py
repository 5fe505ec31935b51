"""Bursts as the server sees them: admitted within the budget, started by its own clock."""
