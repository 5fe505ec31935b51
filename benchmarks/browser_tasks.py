"""The task of benchmarks/browser.py, apart from the other benchmarks' tasks, whose workers load no browser."""

from celery import shared_task

from benchmarks.tasks import write_down
from workers.browser import capture


@shared_task(name="bench.capture")
def capture_page(url: str, path: str) -> int:
    """Take a screenshot, write down that it was taken, and return its size in bytes."""
    size = len(capture(url).png)
    write_down(path, f"{size}\n")
    return size
