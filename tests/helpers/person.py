"""Somebody at the server's own command line: submits tasks, and looks at the record."""

from typing import Any

from sqlalchemy import func, select

from howl.celery import create_app
from howl.config import load_settings
from howl.connections.postgres import session
from howl.models import Task, Worker
from howl.submission import TaskRequest, submit
from tests.helpers.servers import Server
from tests.helpers.support import eventually


class Person:
    """With the server's credential, and PostgreSQL's owner."""

    def __init__(self, server: Server, database_url: str, **other: Any) -> None:
        own = {"join": server.join("server"), "database_url": database_url, "task_modules": ("tests.tasks",)}
        self.settings = load_settings(**own, **other)
        self.app = create_app(self.settings)
        self.app.set_current()
        self.app.loader.import_default_modules()

    def submit(self, name: str, *args: Any) -> str:
        with session(self.settings.database()) as opened:
            return submit(TaskRequest(name=name, args=list(args)), opened, self.app)

    def status(self, task_id: str) -> str:
        return self._row(task_id).status

    def result(self, task_id: str) -> Any:
        return self._row(task_id).result

    def recorded(self) -> int:
        """How many tasks are."""
        with session(self.settings.database()) as opened:
            return opened.scalars(select(func.count()).select_from(Task)).one()

    def _row(self, task_id: str) -> Task:
        with session(self.settings.database()) as opened:
            return opened.get_one(Task, task_id)

    def waits_for(self, *task_ids: str) -> None:
        """Until all of them have succeeded."""
        eventually(lambda: {self.status(task_id) for task_id in task_ids} == {"succeeded"})

    def sees_work_done(self) -> None:
        self.waits_for(self.submit("tests.add", 1, 2))

    def worker(self, name: str) -> str | None:
        """Its status, if it ever registered."""
        with session(self.settings.database()) as opened:
            row = opened.get(Worker, name)
            return row and row.status
