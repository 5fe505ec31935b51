"""Celery applications as people have them, each made HOWL's by one line."""
