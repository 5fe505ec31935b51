"""Keys in Redis."""


def literal(prefix: str) -> str:
    """A pattern of Redis's that this text alone begins with."""
    return "".join(f"\\{letter}" if letter in "*?[]\\" else letter for letter in prefix)
