"""Patterns for keys in Redis."""


def literal(prefix: str) -> str:
    """Return the text escaped for a Redis pattern, so that it matches only itself."""
    return "".join(f"\\{letter}" if letter in "*?[]\\" else letter for letter in prefix)
