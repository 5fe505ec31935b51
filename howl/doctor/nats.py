"""Checks of `howl doctor` for NATS. To test its rights it publishes an empty list, which nobody acts on."""

from collections.abc import Collection, Mapping

from nats.errors import Error as NatsError
from nats.js.api import DiscardPolicy

from howl.artifacts import store
from howl.connections.nats import Connection, events_stream, user_token
from howl.doctor.finding import Answer, beware, well, wrong
from howl.doctor.network import WAY
from howl.doctor.redis import judge_round_trip, round_trip
from howl.doctor.visit import STEP_TIMEOUT, Step, Visit
from howl.server_requests import stream_name as questions_stream

DEFAULT_PORT = 4222
#: Share of JetStream's space that should be free, from 0 to 1.
ENOUGH = 0.1
GIB = 1 << 30
#: Bytes allowed for a message's headers.
HEADERS = 1 << 10
#: Payload of an event without content: an empty list.
NOTHING = b"[]"
#: Header that keeps a message out of every stream: none has this name.
KEPT_NOWHERE = {"Nats-Expected-Stream": "howl-doctor-looks"}


async def login_succeeds(visit: Visit) -> Answer:
    complaints: list[Exception] = []

    async def complain(error: Exception) -> None:
        complaints.append(error)

    visit.client = Connection()
    visit.farewell.push_async_callback(visit.client.close)
    await visit.client.open(visit.settings, "howl doctor", connect_timeout=STEP_TIMEOUT, error_cb=complain)
    visit.client.complaints = complaints
    return well("the credential is accepted")


async def messages_may_be_large(visit: Visit) -> Answer:
    """Check the largest message: a file is sent in pieces, each in one message."""
    return judge_payload(visit.client.max_payload)


def judge_payload(most: int) -> Answer:
    """Judge the bytes of the largest message that the server accepts."""
    said, needed = f"messages of up to {most:,} bytes", store.PIECE + HEADERS
    if most >= needed:
        return well(said)
    return wrong(f"{said}; files need {needed:,}", "raise max_payload in nats.conf, where `howl init` writes 1MB")


async def version_is_told(visit: Visit) -> Answer:
    told = visit.client.connected_server_version
    return well(f"nats-server {told.major}.{told.minor}.{told.patch}")


async def round_trip_is_short(visit: Visit) -> Answer:
    return judge_round_trip(*await round_trip(visit.client.rtt))


async def rights_suffice(visit: Visit) -> Answer:
    """Check rights to publish events and store files, and for the server to read events."""
    prefix = visit.settings.subject_prefix
    for kind, what in (("events", f"publish {prefix}.events"), ("upload", "leave files"), ("leave", "ask for leave")):
        if await _publishing_is_refused(visit, f"{prefix}.{kind}.{user_token(visit.settings)}"):
            return wrong(f"may not {what}", "bring NATS's users up to date: run `howl init` on the server")
    if not visit.as_worker and await _subscribing_is_refused(visit, f"{prefix}.events.>"):
        return wrong(f"may not hear {prefix}.events", "use the server's credential here: `.env` holds it")
    return well(f"may publish {prefix}.events{'' if visit.as_worker else ', hear them'} and leave files")


async def rights_end_somewhere(visit: Visit) -> Answer | None:
    """Check that NATS refuses what a burst machine's credential must not do."""
    if not visit.as_worker:
        return None
    heard = f"{visit.settings.subject_prefix}.events.>"
    inboxes = f"{visit.settings.subject_prefix}.inbox.>"
    granted = [f"hearing {each}" for each in (heard, inboxes) if not await _subscribing_is_refused(visit, each)]
    granted += [] if await _publishing_is_refused(visit, "not-howl.doctor.looks") else ["publishing anything"]
    if not granted:
        return well("refused, as it should be: other subjects, in and out")
    judge = beware if visit.is_here else wrong
    return judge(f"may do too much: {', '.join(granted)}", "give workers a credential of their own: `howl init join`")


async def jetstream_has_room(visit: Visit) -> Answer | None:
    """Check JetStream's space, which holds events and artifacts; workers neither see nor need it."""
    if visit.as_worker:
        return None
    stream = visit.client.jetstream(timeout=STEP_TIMEOUT)
    try:
        account, streams = await stream.account_info(), await stream.streams_info()
    except NatsError:
        return wrong("JetStream is off, or not for this credential", "enable it in nats.conf: `howl init` writes one")
    bounded = [info for info in streams if info.config.discard == DiscardPolicy.NEW and info.config.max_bytes > 0]
    shares = {info.config.name: info.state.bytes / info.config.max_bytes for info in bounded}
    return judge_room(account.storage, account.limits.max_storage, shares)


def judge_room(used: int, limit: int, shares: Mapping[str, float]) -> Answer:
    """Judge by bytes, and by how full each stream is that refuses new messages once it is full.

    A limit below 0 is the server's own, which it does not report to clients.
    """
    of_all = f" of {limit / GIB:.2f} GiB" if limit >= 0 else ""
    said = f"JetStream keeps {used / GIB:.2f} GiB{of_all}"
    full = [f"{name} is {share:.0%} full" for name, share in shares.items() if share > 1 - ENOUGH]
    if limit >= 0 and limit - used < ENOUGH * limit:
        full.append("little is left")
    return (
        beware(f"{said}; {', '.join(full)}", "delete artifacts, or raise the limit in nats.conf")
        if full
        else well(said)
    )


async def streams_are_there(visit: Visit) -> Answer | None:
    """Check for the streams that `howl server` makes and restores; None if all are missing: it never ran here."""
    if visit.as_worker:
        return None
    try:
        found = await visit.client.jetstream(timeout=STEP_TIMEOUT).streams_info()
    except NatsError:
        return None  # JetStream is off, which is reported already
    return judge_streams([info.config.name for info in found], visit.settings.subject_prefix)


def judge_streams(names: Collection[str], prefix: str) -> Answer | None:
    """Judge by the names of the streams that exist."""
    wanted = (events_stream(prefix), questions_stream(prefix), store.stream_name(store.bucket(prefix)))
    missing = [name for name in wanted if name not in names]
    if len(missing) in (0, len(wanted)):
        return None
    return beware(
        f"the stream {' and '.join(missing)} is not there",
        "`howl server` makes it within seconds: see whether it runs, and its log",
    )


async def _publishing_is_refused(visit: Visit, subject: str) -> bool:
    await visit.client.publish(subject, NOTHING, headers=KEPT_NOWHERE)
    return await _was_refused(visit, subject)


async def _subscribing_is_refused(visit: Visit, subject: str) -> bool:
    subscription = await visit.client.subscribe(subject)
    refused = await _was_refused(visit, subject)
    if not refused:
        await subscription.unsubscribe()
    return refused


async def _was_refused(visit: Visit, subject: str) -> bool:
    """Return whether NATS refused; it answers a PING after the errors for what came before it."""
    await visit.client.flush(STEP_TIMEOUT)
    await visit.client.flush(STEP_TIMEOUT)  # nats-py's first PING may overtake data still to be sent
    return any("permissions violation" in str(error).lower() and subject.lower() in str(error).lower()
               for error in visit.client.complaints)  # fmt: skip


STEPS = (
    *WAY,
    Step("login", login_succeeds, "check the port: what listens there is not HOWL's NATS", vital=True),
    Step("round trip", round_trip_is_short, "look at the network between"),
    Step("rights", rights_suffice, "look at the log of NATS"),
    Step("limits", rights_end_somewhere, "look at the log of NATS"),
    Step("messages", messages_may_be_large, "look at the log of NATS"),
    Step("jetstream", jetstream_has_room, "look at the log of NATS"),
    Step("streams", streams_are_there, "look at the log of NATS"),
    Step("version", version_is_told, "look at the log of NATS"),
)
