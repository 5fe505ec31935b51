"""Outcomes on their way from where a task runs to the consumer session."""
