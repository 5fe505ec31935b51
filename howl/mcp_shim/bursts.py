"""Start and end of bursts for an MCP client."""

from howl.bursts import detached, github, records
from howl.bursts.github_api import is_configured
from howl.bursts.request import BurstRequest
from howl.bursts.stop import stop
from howl.config import Settings
from howl.connections import postgres
from howl.mcp_shim import answers
from howl.mcp_shim.answers import BurstReport


def spawn(request: BurstRequest, settings: Settings) -> BurstReport:
    """Start workers; raises BurstFailed, BurstRefused, NotConfigured or DatabaseUnavailable."""
    if is_configured(settings):
        github.start(request, settings)
        note = "Its workers come after a minute or two: list_workers shows them."
    else:
        detached.start(request, settings)
        note = "Its workers are there."
    with postgres.session(settings.database()) as session:
        return answers.burst_report(records.summary(session, records.find(session, request.burst_id)), note)


def coming(request: BurstRequest, settings: Settings) -> str:
    """Describe for people how far the start of a burst is."""
    if is_configured(settings):
        return "GitHub is asked to start them"
    return f"{records.count(settings.database(), request.names)[0]} of {request.workers} workers are there"


def stopped(burst_id: str, settings: Settings) -> BurstReport:
    """End a burst; raises UnknownBurst, or what ending it may raise."""
    row = stop(burst_id, settings)
    note = "It has ended." if row["ended_at"] else "Its workers are leaving: list_workers shows who is still there."
    return answers.burst_report(row, note)
