"""HOWL: a Celery task queue whose workers live far away and die young."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from howl.celery import app as app

__all__ = ["app"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Load the Celery application when it is first asked for: `howl --help` must not pay for Celery's import."""
    if name != "app":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from howl.celery import app  # noqa: PLC0415

    return app
