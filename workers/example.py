"""A task as anybody may write one; docs/tasks.md shows this file, and tells of it line by line."""

from pathlib import Path

from celery import shared_task

from howl.worker.task.context import log, progress


@shared_task(
    name="example.count_words",
    autoretry_for=(FileNotFoundError,),
    retry_backoff=1,
    retry_backoff_max=60,
    retry_jitter=True,
    max_retries=8,
    soft_time_limit=100,
    time_limit=120,
)
def count_words(path: str) -> dict[str, int]:
    """Count the lines and words of a text file on the worker, and wait for the file if it is not there yet.

    path: where it is.
    """
    lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    words = 0
    for number, line in enumerate(lines, 1):
        words += len(line.split())
        progress(number, len(lines))
    log(f"{path} has {words} words")
    return {"lines": len(lines), "words": words}
