"""A process that runs the bridge alone, so that its processor time is the bridge's."""

import asyncio

from howl.config import load_settings
from howl.server.bridge.bridge import Bridge

if __name__ == "__main__":
    asyncio.run(Bridge(load_settings()).run())
