"""Names of workers: Celery's node name, and HOWL's worker id, the shortest name that leads back to it."""

from celery.utils.nodenames import NODENAME_DEFAULT, nodename


def worker_id_of(node_name: str) -> str:
    """Return `github-worker-1` for `celery@github-worker-1`; with another name before the host, all of it is the id."""
    name, _, host = node_name.partition("@")
    return host if name == NODENAME_DEFAULT and host and "@" not in host else node_name


def node_name_of(worker_id: str) -> str:
    """Return Celery's name of a worker, as in `destination` of remote control."""
    return worker_id if "@" in worker_id else nodename(NODENAME_DEFAULT, worker_id)
