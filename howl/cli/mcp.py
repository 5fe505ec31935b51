"""`howl mcp`: serve tools to an MCP client on standard input and output."""

import logging
import signal

import click

from howl.cli.ui.options import application, configure_logging, verbose
from howl.mcp_shim import tools


@click.command()
@application
@verbose
def mcp(verbose: bool) -> None:
    """Serve HOWL's tools to an MCP client, such as Cursor or Claude, on standard input and output.

    The client starts this command; docs/mcp.md has its configuration. Standard output carries the protocol alone,
    the log goes to standard error.

    \b
    Examples:
        claude mcp add howl -- howl mcp
        howl mcp < /dev/null           does it start?
    """
    configure_logging(verbosely=verbose)
    logging.getLogger("mcp.server").setLevel(logging.INFO)
    # Python's own handling of Ctrl-C waits for the thread that reads standard input, which waits for a line.
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    tools.create_server().run("stdio")
