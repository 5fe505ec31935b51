"""The entry point of `make demo`: plays all acts in a temporary folder, and leaves nothing behind."""

import secrets
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from demo.acts import Demo
from demo.processes import adopt_orphans, end_leftovers, interruptible
from demo.screen import Screen
from demo.work import agent_command, require_checkout
from howl.embedded.isolation import isolate
from howl.errors import HowlError
from workers.checkout import workfolder


@click.command()
@click.option("--keep", is_flag=True, help="Keep the state folder, with every log, instead of removing it.")
def main(keep: bool) -> None:
    """See the whole of HOWL do its job on this machine, checked, in under two minutes.

    Nothing that is set in your environment or in .env is used, and no server but its own is reached.
    """
    require_checkout()
    adopt_orphans()
    screen = Screen()
    screen.say("HOWL from end to end. All of it is real but the coding agent: that one is a stand-in, a small script.")
    demo = None
    with interruptible(), _state_folder(keep, screen) as home:
        nonce = home / "nonce"
        isolate(HOWL_HOME=str(home), HOWL_WEB_ALLOW_PRIVATE="1", HOWL_AGENT_COMMAND=agent_command(nonce))
        nonce.touch(mode=0o600)
        nonce.write_text(secrets.token_hex(32))
        try:
            demo = Demo(home, nonce, screen)
            demo.play()
        except HowlError as error:
            screen.check("the demo was played to its end", False, error.message)
    well = screen.verdict()
    if demo is not None and demo.picture is not None:
        screen.say(f"What a worker's browser saw: {demo.picture}")
    sys.exit(0 if well else 1)


@contextmanager
def _state_folder(keep: bool, screen: Screen) -> Iterator[Path]:
    """Yield a folder for everything; afterwards end every process that was started, and remove it unless `keep`."""
    # In /tmp, whatever TMPDIR says, and open to enter: for root, PostgreSQL runs as another user.
    home = Path(tempfile.mkdtemp(prefix="howl-demo-", dir="/tmp"))
    try:
        home.chmod(0o711)
        screen.say(f"State folder: {home}")
        yield home
    finally:
        screen.act("Everything is put away")
        left = end_leftovers()
        screen.check("no process is left", not left, left)
        if keep:
            screen.say(f"Kept: {home}")
        else:
            workfolder.remove(home)  # however deep the folders that a test left in it
            screen.check("no file is left", not home.exists(), home)


if __name__ == "__main__":
    main()
