"""The least a client must do to tell that a server works: write something, and read it back."""

import asyncio
from urllib.parse import urlsplit

import nats
import psycopg
import redis

from howl.embedded.stack import StackUrls


def write(urls: StackUrls) -> None:
    """Leave a mark in all three servers."""
    with redis.Redis.from_url(urls.redis_url) as client:
        client.set("mark", "kept")
    asyncio.run(_write_nats(urls.nats_url))
    with psycopg.connect(urls.database_url) as connection:
        connection.execute("CREATE TABLE mark AS SELECT 'kept' AS value")


def read(urls: StackUrls) -> tuple[str, str, str]:
    """The marks: ("kept", "kept", "kept")."""
    return read_redis(urls.redis_url), read_nats(urls.nats_url), read_postgres(urls.database_url)


def read_redis(url: str) -> str:
    with redis.Redis.from_url(url, decode_responses=True) as client:
        return str(client.get("mark"))


def read_nats(url: str) -> str:
    return asyncio.run(_read_nats(url))


def read_postgres(url: str) -> str:
    with psycopg.connect(url) as connection:
        return one(connection, "SELECT value FROM mark")


def one(connection: psycopg.Connection, query: str) -> str:
    row = connection.execute(query.encode()).fetchone()
    assert row is not None
    return str(row[0])


async def _write_nats(url: str) -> None:
    client = await nats.connect(url)
    stream = client.jetstream()
    await stream.add_stream(name="marks", subjects=["mark"])
    await stream.publish("mark", b"kept")
    await client.close()


async def _read_nats(url: str) -> str:
    client = await nats.connect(url)
    message = await client.jetstream().get_last_msg("marks", "mark")
    await client.close()
    return (message.data or b"").decode()


def port_of(url: str) -> int:
    return urlsplit(url).port or 0
