"""One without the line."""

from celery import Celery

app = Celery("not_howls", set_as_current=False)
