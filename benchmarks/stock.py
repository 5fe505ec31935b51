"""Stock Celery as its documentation sets it up, for a contender's worker process; addresses come from BENCH_*."""

import os

from celery import Celery

app = Celery("stock", broker=os.environ["BENCH_BROKER"], backend=os.environ["BENCH_BACKEND"])
app.conf.update(
    imports=["benchmarks.tasks"],
    task_acks_late=True,
    broker_transport_options={"global_keyprefix": os.environ["BENCH_PREFIX"]},
    result_backend_transport_options={"global_keyprefix": os.environ["BENCH_PREFIX"]},
)
