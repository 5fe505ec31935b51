"""Distance on one machine: a TCP proxy that delays everything, in both directions."""

import asyncio
import sys

#: Bytes read at once.
CHUNK = 1 << 16


async def serve(port: int, target: int, one_way: float) -> None:
    """Forward connections on loopback forever, each byte `one_way` seconds late."""

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", target)
        except OSError:
            writer.close()
            return
        await asyncio.gather(_carry(reader, far_writer, one_way), _carry(far_reader, writer, one_way))

    async with await asyncio.start_server(connected, "127.0.0.1", port) as server:
        print("ready", flush=True)
        await server.serve_forever()


async def _carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, one_way: float) -> None:
    """Forward each chunk `one_way` seconds after it arrived: distance delays bytes, it does not reduce bandwidth."""
    loop = asyncio.get_running_loop()
    road: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()

    async def arrive() -> None:
        while True:
            due, data = await road.get()
            await asyncio.sleep(max(0.0, due - loop.time()))
            if not data:
                writer.close()
                return
            writer.write(data)

    arriving = asyncio.create_task(arrive())
    try:
        while data := await reader.read(CHUNK):
            road.put_nowait((loop.time() + one_way, data))
    except ConnectionError:
        pass  # the same as the end of the stream
    road.put_nowait((loop.time() + one_way, b""))
    await arriving


if __name__ == "__main__":
    # The port to listen on, the port to forward to, milliseconds of a round trip.
    asyncio.run(serve(int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]) / 2000))
