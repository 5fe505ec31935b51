"""`howl migrate`: the tables of this version, from wherever HOWL is installed."""

import subprocess
import sys

import psycopg

from howl.server import migrate


def howl(*line, env, cwd):
    argv = [sys.executable, "-P", "-m", "howl.cli", *line]
    return subprocess.run(argv, env=env, cwd=cwd, capture_output=True, text=True, check=False, timeout=60)


def test_an_empty_database_gets_the_tables_outside_a_checkout_and_is_well_then(settings, env, tmp_path):
    with psycopg.connect(settings.database()) as connection:
        connection.execute("DROP SCHEMA public CASCADE")
        connection.execute("CREATE SCHEMA public")
    refused = howl("tasks", "list", env=env, cwd=tmp_path)
    assert (refused.returncode, "run `howl migrate`" in refused.stderr) == (1, True)
    for _ in range(2):
        answer = howl("migrate", env=env, cwd=tmp_path)
        assert (answer.returncode, answer.stdout) == (0, f"The tables are at migration {migrate.head()}, the newest.\n")
    assert howl("tasks", "list", env=env, cwd=tmp_path).returncode == 0


def test_a_database_of_a_newer_howl_is_left_alone_in_one_sentence(settings, env, tmp_path):
    with psycopg.connect(settings.database()) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")
    for line in ("migrate", "server"):
        answer = howl(line, env=env, cwd=tmp_path)
        assert (answer.returncode, "Traceback" in answer.stderr) == (1, False)
        assert "at migration 9999, which this HOWL does not know: update HOWL" in answer.stderr
