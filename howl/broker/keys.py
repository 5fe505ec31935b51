"""Key patterns for Redis."""


def literal(prefix: str) -> str:
    """Return a Redis pattern that matches this text alone."""
    return "".join(f"\\{letter}" if letter in "*?[]\\" else letter for letter in prefix)
