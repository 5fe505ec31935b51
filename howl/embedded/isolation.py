"""An environment, for demo and tests, in which no inherited variable can point at a real server."""

import os

#: Variables that are kept, beside LC_*; a list of those to drop would miss the next one that a library starts to read.
PERSON = ("HOME", "USER", "LOGNAME", "SHELL", "TERM", "COLUMNS", "LINES", "NO_COLOR", "TMPDIR", "TZ", "LANG", "CI")
PROGRAMS = ("PATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH")
PYTHON = ("PYTHONPATH", "PYTHONUTF8", "PYTHONHASHSEED", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX")
ALLOWED = frozenset((*PERSON, *PROGRAMS, *PYTHON))


def clean_environment(**settings: str) -> dict[str, str]:
    """Return the inherited variables, less all that could configure HOWL, a library or a client, plus `settings`.

    No `.env` is read and only loopback hosts are accepted, unless `settings` say otherwise.
    """
    kept = {name: value for name, value in os.environ.items() if name in ALLOWED or name.startswith("LC_")}
    return kept | {"HOWL_ENV_FILE": "", "HOWL_LOOPBACK_ONLY": "1"} | settings


def isolate(**settings: str) -> None:
    """Give this process, and the children it starts from now on, `clean_environment(**settings)`."""
    environment = clean_environment(**settings)
    os.environ.clear()
    os.environ.update(environment)
