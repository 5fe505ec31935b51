"""HOWL: a Celery task queue whose workers live far away and die young."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from howl.celery import app as app
    from howl.celery import install as install

__all__ = ["app", "install"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Load what concerns Celery when it is first asked for: `howl --help` must not pay for Celery's import."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module("howl.celery"), name)
