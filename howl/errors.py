"""Every error that people may see, each a sentence that says what to do next."""

import click
from kombu.exceptions import EncodeError


def visible(text: str) -> str:
    """Return the text with control characters escaped: a worker's text must not control a person's terminal."""
    return "".join(char if char.isprintable() or char in "\n\t" else ascii(char)[1:-1] for char in text)


class HowlError(click.ClickException):
    """Base of HOWL's own errors: `howl` and `celery` print its text, without traceback, and exit with status 1."""

    def format_message(self) -> str:
        """Return the message escaped for printing: ids and names in it may be a stranger's."""
        return visible(self.message)


class SettingsError(HowlError):
    """A setting cannot be used as given."""


class NotConfigured(SettingsError):
    """A part of the server is needed whose address is not set."""


class QueueUnavailable(HowlError):
    """Redis cannot be reached, or refused; a submitted task is recorded and will be pushed later."""


class DatabaseUnavailable(HowlError):
    """PostgreSQL cannot be reached, or refused."""


class UnknownTask(HowlError):
    """No task of that name is registered, or no task of that id is recorded."""


class InvalidRequest(HowlError):
    """The request itself is wrong: its arguments do not fit, or its values cannot be stored."""


class UnknownWorker(HowlError):
    """The named worker is not active."""


class UnreadableOutcome(HowlError):
    """An entry of the outcomes stream is not an outcome."""


class UnreadableQuestion(HowlError):
    """A worker's request over NATS is not valid."""


class EmbeddedServerError(HowlError):
    """An embedded Redis, NATS or PostgreSQL could not be started, or stopped by itself."""


class BurstFailed(HowlError):
    """Burst workers could not be started."""


class BurstRefused(HowlError):
    """A burst would use more than is left of the budget, or more than makes sense."""


class BurstBegun(BurstRefused):
    """A burst of that id is recorded already."""


class UnknownBurst(HowlError):
    """No burst of that id is recorded."""


class ServerUnavailable(HowlError):
    """`howl server` does not answer over NATS, or cannot decide now."""


class GitHubFailed(BurstFailed):
    """GitHub's API refused, or does not answer."""


class GitHubUnsure(GitHubFailed):
    """GitHub may have done what was asked, but did not confirm it."""


class OutcomeRefused(HowlError):
    """A task ended with values that PostgreSQL cannot hold; its end is recorded without them."""


class OutcomeTooLarge(HowlError, EncodeError):
    """A result is larger than an outcome may be; as an EncodeError, Celery makes it the task's failure."""


class CommandsNotAllowed(HowlError):
    """The owner of this worker has not agreed to run programs on it."""


class CommandNotStarted(HowlError):
    """The program or its folder does not exist on the worker, or may not be used there."""


class ArgumentsTooLong(CommandNotStarted):
    """The program's arguments, or its variables, are longer than its system accepts."""


class CommandTimedOut(HowlError):
    """The program took longer than its task allowed; it was ended with everything that it had started."""


class CommandFailed(HowlError):
    """The program's end could not be observed."""


class AgentFailed(HowlError):
    """The coding agent ended with an exit status other than 0."""


class CheckoutFailed(HowlError):
    """The repository for an agent could not be fetched, or the agent's changes in it cannot be determined."""


class AddressRefused(HowlError):
    """The URL leads to an address that workers do not fetch from."""


class FetchFailed(HowlError):
    """The page could not be fetched whole: there was no answer, or it was late, or not valid HTTP."""


class BrowserFailed(HowlError):
    """A worker's browser could not be started, or ended by itself."""


class WorkerGone(HowlError):
    """The one worker that a task was assigned to left before it started the task."""


class DemoFailed(HowlError):
    """The demo could not be completed."""


class MessageRefused(HowlError):
    """A message on a task queue could not be read, or was refused: its task never ran."""


class TaskDied(HowlError):
    """A task's runs died, or were broken off, too often: it is kept for replay, and not restarted automatically."""


class TaskSetAside(HowlError):
    """`howl server` could not push a task to its queue, or do another step that was due, in several tries."""


class NotGranted(HowlError):
    """A worker's credential does not reach a queue."""


class BackupFailed(HowlError):
    """A backup could not be made or restored; nothing half made is left of it."""


class ArchiveRefused(HowlError):
    """A file is no backup, is damaged, or was made by a newer HOWL."""


class RestoreRefused(HowlError):
    """The data to be restored would be mixed with existing data."""


class EventsNotKept(HowlError):
    """NATS answers, but does not store workers' events."""


class ProvisionFailed(HowlError):
    """A real server's folder cannot be made or changed as asked."""


class WorkerSilent(HowlError):
    """A worker did not answer a command."""


class ArtifactRefused(InvalidRequest):
    """A file is not kept, because of its name, its size or its kind, or because no room is left for it."""


class ArtifactFailed(HowlError):
    """A file could not be stored, or not be fetched whole; nothing half done is left of it."""


class UnknownArtifact(HowlError):
    """A task produced no file of that name, or it is no longer there."""


class ChordRefused(HowlError):
    """A chord has parts that its worker may not see or report, or too many chords of its credential wait."""


class ChordExpired(HowlError):
    """A chord's parts did not all end in time."""
