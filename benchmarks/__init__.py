"""HOWL beside stock Celery, in one run."""
