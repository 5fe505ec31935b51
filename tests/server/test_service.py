"""The server's parts side by side."""

import asyncio
from contextlib import suppress

from howl.server.service import end


def test_a_part_ends_although_a_library_of_its_kept_the_first_word_to_itself():
    async def deaf_once() -> None:
        with suppress(asyncio.CancelledError):
            await asyncio.sleep(60)
        await asyncio.sleep(60)

    async def serve() -> bool:
        part = asyncio.create_task(deaf_once())
        await asyncio.sleep(0)
        await asyncio.wait_for(end([part]), 10)
        return part.cancelled()

    assert asyncio.run(serve())
