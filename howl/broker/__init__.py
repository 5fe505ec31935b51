"""Redis as the broker: the transport, its scripts, and reads of what workers write."""
