"""The neighbour's load: short tasks on his queue at a steady rate, `python -m benchmarks.hostile.load RATE`.

It is a process of its own with the server's credential, like any client that submits. Tasks due while Redis does not
answer are submitted afterwards. At rate 0 the queue is never empty.
"""

import random
import sys
import time

import redis
from celery import Celery
from kombu.exceptions import KombuError

from benchmarks.hostile.thief import THEIRS
from howl.celery import create_app
from howl.config import Settings, load_settings
from howl.connections.redis import redis_client

#: Seconds between two rounds of submission, most tasks of a batch, and tasks kept waiting at rate 0.
PACE, BATCH, WAITING = 0.05, 1000, 3000


def main(rate: float) -> None:
    """Submit tasks until killed."""
    settings = load_settings()
    app = create_app(settings)
    client = redis_client(settings, timeout=5)
    began, submitted = time.monotonic(), 0
    print("loading", flush=True)
    while True:
        try:
            due = int((time.monotonic() - began) * rate) - submitted if rate else WAITING - _waiting(client, settings)
            for _ in range(0, due, BATCH):
                count = min(due, BATCH)
                _submit(app, count)
                submitted, due = submitted + count, due - count
        except (redis.RedisError, KombuError, OSError) as error:
            print(f"not submitted: {error!r:.200}", flush=True)
            time.sleep(random.uniform(0.2, 0.6))  # noqa: S311  # jitter, no secret
        time.sleep(PACE)


def _waiting(client: redis.Redis, settings: Settings) -> int:
    return int(client.llen(settings.key(THEIRS)))


def _submit(app: Celery, count: int) -> None:
    with app.producer_pool.acquire() as producer, producer.batch(max_size=BATCH):
        for _ in range(count):
            app.send_task("bench.clock", queue=THEIRS, producer=producer, retry=False)


if __name__ == "__main__":
    main(float(sys.argv[1]))
