"""A stock Celery application with the task families, for workers on the broker that PLAIN_BROKER names."""

import os

from celery import Celery

from workers import TASK_MODULES


def configure(made: Celery, url: str, prefix: str) -> Celery:
    made.conf.update(
        broker_url=url,
        result_backend=url,
        broker_transport_options={"global_keyprefix": prefix},
        result_backend_transport_options={"global_keyprefix": prefix},
        accept_content=["json"],
        imports=TASK_MODULES,
        task_acks_late=True,
        task_reject_on_worker_lost=True,
        worker_prefetch_multiplier=1,
        broker_connection_retry_on_startup=False,
    )
    return made


if "PLAIN_BROKER" in os.environ:
    app = configure(Celery("plain"), os.environ["PLAIN_BROKER"], os.environ["PLAIN_PREFIX"])
