"""What a worker is called: a node by Celery, and by HOWL the shortest name that leads back to the node's."""

from celery.utils.nodenames import NODENAME_DEFAULT, nodename


def worker_id_of(node_name: str) -> str:
    """`celery@github-worker-1` is worker `github-worker-1`; with another name before its host, all of it is its id."""
    name, _, host = node_name.partition("@")
    return host if name == NODENAME_DEFAULT and host and "@" not in host else node_name


def node_name_of(worker_id: str) -> str:
    """What Celery calls a worker: `destination` of remote control."""
    return worker_id if "@" in worker_id else nodename(NODENAME_DEFAULT, worker_id)
