"""Consuming: the worker's turns with Redis, its claims, and what it changes in Celery's request and pool."""
