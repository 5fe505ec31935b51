"""Every error a person may meet, one sentence each, saying what to do next."""

import click
from kombu.exceptions import EncodeError


def visible(text: str) -> str:
    """The text with control characters written out: a worker's words must not steer a person's terminal."""
    return "".join(char if char.isprintable() or char in "\n\t" else ascii(char)[1:-1] for char in text)


class HowlError(click.ClickException):
    """Base of HOWL's own errors: `howl` and `celery` alike print its text, no traceback, and exit with status 1."""

    def format_message(self) -> str:
        """As it is printed: ids and names in it may be a stranger's."""
        return visible(self.message)


class SettingsError(HowlError):
    """A setting cannot be used as given."""


class NotConfigured(SettingsError):
    """A part of the server is needed whose address nobody gave."""


class QueueUnavailable(HowlError):
    """Redis cannot be reached, or refused; what was submitted is recorded and will be pushed later."""


class DatabaseUnavailable(HowlError):
    """PostgreSQL cannot be reached, or refused."""


class UnknownTask(HowlError):
    """No task of that name is registered, or no task of that id is recorded."""


class InvalidRequest(HowlError):
    """The request itself is wrong: arguments that do not fit, values that cannot be stored."""


class UnknownWorker(HowlError):
    """The named worker is not active."""


class UnreadableOutcome(HowlError):
    """An entry of the outcomes stream is not an outcome."""


class UnreadableQuestion(HowlError):
    """What a worker asked over NATS makes no sense."""


class EmbeddedServerError(HowlError):
    """An embedded Redis, NATS or PostgreSQL could not be started, or stopped by itself."""


class BurstFailed(HowlError):
    """Burst workers could not be started."""


class BurstRefused(HowlError):
    """A burst would take more than the budget leaves, or more than makes sense."""


class BurstBegun(BurstRefused):
    """A burst of that id is recorded already."""


class UnknownBurst(HowlError):
    """No burst of that id is recorded."""


class ServerUnavailable(HowlError):
    """`howl server` does not answer over NATS, or cannot decide now."""


class GitHubFailed(BurstFailed):
    """GitHub's API refused, or does not answer."""


class GitHubUnsure(GitHubFailed):
    """GitHub may have done what was asked although it did not say so."""


class OutcomeRefused(HowlError):
    """A task ended with values that PostgreSQL cannot hold; its end is recorded without them."""


class OutcomeTooLarge(HowlError, EncodeError):
    """A result is larger than an outcome may be; as an EncodeError, Celery makes it the task's failure."""


class CommandsNotAllowed(HowlError):
    """This worker's owner has not agreed to run programs on it."""


class CommandNotStarted(HowlError):
    """The program or its folder does not exist on the worker, or may not be used there."""


class ArgumentsTooLong(CommandNotStarted):
    """The program's arguments, or its variables, are longer than its system takes."""


class CommandTimedOut(HowlError):
    """The program took longer than its task allowed; all it had started was ended with it."""


class CommandFailed(HowlError):
    """The program's end could not be observed."""


class AgentFailed(HowlError):
    """The coding agent ended with an exit status other than 0."""


class CheckoutFailed(HowlError):
    """The repository for an agent could not be fetched, or what the agent changed in it cannot be told."""


class AddressRefused(HowlError):
    """The URL leads to an address that workers do not fetch from."""


class FetchFailed(HowlError):
    """The page could not be fetched whole: no answer, not in time, or not as HTTP prescribes."""


class BrowserFailed(HowlError):
    """A worker's browser could not be started, or ended by itself."""


class WorkerGone(HowlError):
    """The one worker a task was assigned to went away before it started the task."""


class DemoFailed(HowlError):
    """The demo could not be shown to its end."""


class MessageRefused(HowlError):
    """A message on a task queue could not be read, or was refused: its task never ran."""


class TaskDied(HowlError):
    """A task's runs died, or were broken off, too often: it is kept for replay, and not started again by itself."""


class TaskSetAside(HowlError):
    """`howl server` could not put a task on its queue, or do what else was due, however often it tried."""


class NotGranted(HowlError):
    """A worker's credential does not reach a queue."""


class BackupFailed(HowlError):
    """A backup could not be made, or what it holds could not be put back; nothing half made is left of it."""


class ArchiveRefused(HowlError):
    """A file is no backup, is damaged, or was made by a newer HOWL."""


class RestoreRefused(HowlError):
    """What is to be restored would be mixed with what is there already."""


class EventsNotKept(HowlError):
    """NATS answers, and does not store what workers tell."""


class ProvisionFailed(HowlError):
    """A real server's folder cannot be made or changed as asked."""


class WorkerSilent(HowlError):
    """A worker that was told something did not answer."""


class ArtifactRefused(InvalidRequest):
    """A file is not kept as it was given: its name, its size, its kind, or no room is left for it."""


class ArtifactFailed(HowlError):
    """A file could not be stored, or could not be fetched whole; nothing half done is left of it."""


class UnknownArtifact(HowlError):
    """A task left no file of that name, or it is no longer there."""


class ChordRefused(HowlError):
    """A chord is made of what its worker may not see or tell of, or too many of its credential's wait."""


class ChordExpired(HowlError):
    """A chord's parts had not all ended in time."""
