"""`howl env`: where the servers are, for a shell."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from howl.cli import main
from howl.embedded import binaries

AWKWARD = 'a\'b $(touch x) "c" %;'
URL = "postgresql://some%20one:a%27b%20%24%28touch%20x%29%20%22c%22%20%25%3B@localhost:6543/re%20cord?sslmode=require"
#: A folder with the shell's own tools and no psql.
BARE_PATH = "/nowhere"


def howl_env(*arguments, **given):
    answer = CliRunner().invoke(main, ["env", *arguments], env={"PATH": os.environ["PATH"], **given})
    assert answer.exit_code == 0, answer.output
    return answer.output


def test_an_address_is_printed_alone_when_one_is_asked_for(settings, env):
    for which, url in (("redis", settings.redis()), ("nats", settings.nats()), ("database", settings.database())):
        assert howl_env(which, **env) == f"{url}\n"


def test_psql_reaches_the_database_after_eval(settings, env, tmp_path):
    howl = shlex.quote(str(Path(sys.executable).with_name("howl")))
    script = f'eval "$({howl} env)"; psql --no-psqlrc -Atc "SELECT current_database()"'
    answer = subprocess.run(["sh", "-c", script], env=env, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert (answer.stdout, answer.stderr) == (f"{settings.database().rpartition('/')[2]}\n", "")


def test_values_reach_the_shell_unchanged_whatever_is_in_them(tmp_path):
    script = f"{howl_env(HOWL_DATABASE_URL=URL)}\nenv -0"
    seen = subprocess.run(["sh", "-c", script], env={}, capture_output=True, text=True, check=True, cwd=tmp_path).stdout
    variables = dict(line.partition("=")[::2] for line in seen.split("\0"))
    assert variables["PGPASSWORD"] == AWKWARD
    assert variables["HOWL_DATABASE_URL"] == URL
    assert {name: variables[name] for name in ("PGHOST", "PGPORT", "PGUSER", "PGDATABASE", "PGSSLMODE")} == {
        "PGHOST": "localhost", "PGPORT": "6543", "PGUSER": "some one", "PGDATABASE": "re cord", "PGSSLMODE": "require",
    }  # fmt: skip
    assert list(tmp_path.iterdir()) == []


def test_only_what_is_configured_is_printed():
    assert howl_env(HOWL_REDIS_URL="redis://127.0.0.1:1/0") == "export HOWL_REDIS_URL=redis://127.0.0.1:1/0\n"


def test_the_wheels_psql_is_put_at_the_end_of_path_only_where_there_is_no_other(tmp_path):
    line = f'export PATH="$PATH":{shlex.quote(str(binaries.psql().parent))}\n'
    assert howl_env(HOWL_DATABASE_URL=URL, PATH=BARE_PATH).endswith(line)
    psql = tmp_path / "psql"
    psql.touch(mode=0o755)
    assert "PATH" not in howl_env(HOWL_DATABASE_URL=URL, PATH=str(tmp_path))


@pytest.mark.parametrize("line", [["--help"], ["tasks", "--help"], ["env", "--help"], ["worker", "--help"]])
def test_no_other_output_shows_an_address(line):
    answer = CliRunner().invoke(main, line, env={"HOWL_REDIS_URL": "redis://:sekret@127.0.0.1:1/0"})
    assert "sekret" not in answer.output
