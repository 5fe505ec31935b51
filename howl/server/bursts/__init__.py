"""Bursts on the server's side: admitted within the budget, and started by schedule and by demand."""
