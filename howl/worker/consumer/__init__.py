"""Consuming: the conversation with Redis, what a worker holds, and Celery's request and pool."""
