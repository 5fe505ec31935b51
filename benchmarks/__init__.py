"""Benchmarks of HOWL, some of them beside stock Celery in the same run."""
