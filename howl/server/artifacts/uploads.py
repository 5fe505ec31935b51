"""Uploads of workers' files: how pieces get into the bucket, and how a file becomes an object of NATS's store.

A worker may not publish in the bucket. The server sends it messages that it may answer, each once, where a piece
belongs. So the server chooses the subjects, and no byte passes through it.
"""

import json
import logging

from nats.aio.client import Client
from nats.js import JetStreamContext
from nats.js.api import ObjectInfo, ObjectMetaOptions
from nats.js.errors import APIError
from pydantic import ValidationError

from howl.artifacts import store
from howl.config import Settings
from howl.errors import UnreadableQuestion
from howl.server.artifacts.quota import Room
from howl.server.requests import Question
from howl.server_requests import KEPT, Piece, Refused, Whole

logger = logging.getLogger(__name__)

OPTIONS = ObjectMetaOptions(max_chunk_size=store.PIECE)
INCOMPLETE = Refused(why="not all of the file came", is_final=False)
#: Headers with which JetStream accepts a message only on an empty subject.
FIRST = {"Nats-Expected-Last-Subject-Sequence": "0"}


class Uploads:
    """Answers workers' questions about files to upload."""

    def __init__(self, client: Client, settings: Settings, room: Room) -> None:
        self.client = client
        self.stream: JetStreamContext = client.jetstream()
        self.bucket = store.bucket(settings.subject_prefix)
        self.room = room

    async def answer(self, question: Question) -> None:
        """Answer one question; raises UnreadableQuestion or NATS's errors."""
        asked = _read(question)
        if isinstance(asked, Whole):
            refused = await self._conclude(question.user, asked)
            await self.client.publish(question.address, KEPT if refused is None else _document(refused))
            return
        refused = self.room.give(question.user, asked.artifact_id, asked.size, asked.pieces)
        if refused is not None:
            await self.client.publish(question.address, _document(refused))
            return
        place = store.pieces_subject(self.bucket, f"{question.user}.{asked.artifact_id}")
        for _ in range(asked.pieces):
            await self.client.publish(question.address, b"", place)

    async def _conclude(self, user: str, whole: Whole) -> Refused | None:
        """Write the description of a file that is complete; repeating it changes nothing."""
        nuid = f"{user}.{whole.artifact_id}"
        found = await store.measure(self.stream, self.bucket, nuid, whole.pieces + 1)
        if found != (whole.pieces, whole.size):
            return INCOMPLETE
        info = ObjectInfo(
            name=whole.artifact_id, bucket=self.bucket, nuid=nuid, description=whole.name, options=OPTIONS,
            size=whole.size, chunks=whole.pieces, digest=whole.digest,
        )  # fmt: skip
        subject = store.meta_subject(self.bucket, whole.artifact_id)
        try:
            await self.stream.publish(subject, store.description(info), headers=FIRST)
        except APIError:  # it is described already, or there is no room for that
            known = await store.describe(self.stream, self.bucket, whole.artifact_id)
            if known is None or (known.nuid, known.digest) != (nuid, whole.digest):
                return Refused(why="the file cannot be described", is_final=False)
        self.room.end(user, whole.artifact_id, whole.size, whole.pieces)
        return None


def _read(question: Question) -> Piece | Whole:
    try:
        told = json.loads(question.data)
        kind = Whole if isinstance(told, dict) and "digest" in told else Piece
        return kind.model_validate(told)
    except (ValidationError, ValueError, RecursionError):
        raise UnreadableQuestion(
            f"A question of {question.user} about a file cannot be read: is its worker as new as this server?"
        ) from None


def _document(refused: Refused) -> bytes:
    return refused.model_dump_json().encode()
