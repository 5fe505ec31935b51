"""A running `howl flower`, and somebody who visits it."""

import re
from typing import Any, Self

import httpx

from tests.helpers.support import Process, eventually

LOGIN = "me:only-for-tests"


class Flower:
    """One that was told LOGIN, or `login`."""

    def __init__(self, process: Process, login: str = LOGIN) -> None:
        self.process = process
        eventually(lambda: self._address or process.popen.poll() is not None)
        assert self._address, process.output
        self.url = self._address[1]
        user, _, password = login.partition(":")
        self.login = (user, password)
        self.visitor = httpx.Client(base_url=self.url, auth=self.login, trust_env=False, timeout=30)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.visitor.close()

    @property
    def _address(self) -> re.Match[str] | None:
        return re.search(r"Flower is up at (\S+?);", self.process.output)

    def get(self, path: str, **query: Any) -> Any:
        """What the API says."""
        answer = self.visitor.get(path, params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def press(self, path: str, **query: Any) -> httpx.Response:
        """A button."""
        return self.visitor.post(path, params=query)

    def knows(self, *workers: str) -> None:
        """Wait until they have told of themselves: buttons are for those."""
        eventually(lambda: set(workers) <= set(self.get("/api/workers", refresh=1)))
