"""The record as `psql`, PostgreSQL's own client, reads it once everything has been stopped and started again."""

from dataclasses import dataclass
from urllib.parse import unquote, urlsplit

from demo.processes import output_of
from howl.embedded import binaries

TASKS = """
SELECT name AS task, status, count(*) AS tasks, count(DISTINCT worker_id) AS workers,
       round(avg(runtime)::numeric, 2) AS seconds_each
FROM tasks GROUP BY name, status ORDER BY name
"""
WORKERS = "SELECT worker_id, manager_host, status, offline_at - registered_at AS stayed FROM workers ORDER BY worker_id"

ENTRIES = """
SELECT task_id, status, (SELECT count(*) FROM task_events AS e WHERE e.task_id = t.task_id AND e.kind = 'succeeded'),
       CASE name WHEN 'web.fetch' THEN result->>'sha256'
                 WHEN 'browser.screenshot' THEN result->>'title'
                 ELSE substring(result->>'stdout' from '"nonce_sha256": "([0-9a-f]{64})"') END
FROM tasks AS t
"""
STATUSES = "SELECT status FROM workers"


@dataclass(frozen=True)
class Entry:
    """A task in the record; `ends` counts its events of success."""

    task_id: str
    status: str
    ends: int
    digest: str


class Psql:
    """`psql` on one database."""

    def __init__(self, url: str) -> None:
        self.parts = urlsplit(url)

    def table(self, statement: str) -> str:
        """Return an answer as a table for people to read."""
        return self._ask(statement, "--pset=footer=off")

    def entries(self) -> list[Entry]:
        """Return every recorded task."""
        rows = (row.split("|") for row in self._rows(ENTRIES))
        return [Entry(task_id, status, int(ends), digest) for task_id, status, ends, digest in rows]

    def worker_statuses(self) -> list[str]:
        """Return the status of every recorded worker."""
        return self._rows(STATUSES)

    def _rows(self, statement: str) -> list[str]:
        return self._ask(statement, "--tuples-only", "--no-align").splitlines()

    def _ask(self, statement: str, *options: str) -> str:
        """Run `psql`, with the password in its environment: everyone can read a command line."""
        place = [f"--host={self.parts.hostname}", f"--port={self.parts.port}", f"--username={self.parts.username}"]
        line = ["--no-psqlrc", "--no-password", *place, f"--dbname={self.parts.path[1:]}", *options]
        password = unquote(self.parts.password or "")
        return output_of(binaries.psql(), *line, f"--command={statement}", PGPASSWORD=password)
