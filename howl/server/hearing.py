"""A NATS client for who hears strangers: what it cannot read must not make it deaf."""

from typing import Any

from nats.aio.client import Client


class HardyClient(Client):
    """nats-py ends its reading, and says so to nobody, when a message has a header such as `garbage`."""

    async def _process_headers(self, headers: Any) -> Any:
        try:
            return await super()._process_headers(headers)
        except (IndexError, ValueError):  # UnicodeDecodeError is one
            return None
