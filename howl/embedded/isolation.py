"""An environment in which nothing inherited can point at a real server: for demo and tests."""

import os

#: All that passes, beside LC_*; a list of what to drop would miss the next variable that some library learns to read.
PERSON = ("HOME", "USER", "LOGNAME", "SHELL", "TERM", "COLUMNS", "LINES", "NO_COLOR", "TMPDIR", "TZ", "LANG", "CI")
PROGRAMS = ("PATH", "VIRTUAL_ENV", "LD_LIBRARY_PATH")
PYTHON = ("PYTHONPATH", "PYTHONUTF8", "PYTHONHASHSEED", "PYTHONDONTWRITEBYTECODE", "PYTHONPYCACHEPREFIX")
ALLOWED = frozenset((*PERSON, *PROGRAMS, *PYTHON))


def clean_environment(**settings: str) -> dict[str, str]:
    """What this process inherited, less everything that could configure HOWL, a library or a client; plus `settings`.

    No `.env` is read and only loopback hosts are accepted, unless `settings` say otherwise.
    """
    kept = {name: value for name, value in os.environ.items() if name in ALLOWED or name.startswith("LC_")}
    return kept | {"HOWL_ENV_FILE": "", "HOWL_LOOPBACK_ONLY": "1"} | settings


def isolate(**settings: str) -> None:
    """Give this process, and the children it starts from now on, `clean_environment(**settings)`."""
    environment = clean_environment(**settings)
    os.environ.clear()
    os.environ.update(environment)
