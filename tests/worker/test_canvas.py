"""Canvas that the server itself submits, or has fail: its values are those of Celery with Redis as its backend."""

from typing import Any

import pytest
from celery import chain, chord, group
from celery.exceptions import TimeoutError as CeleryTimeoutError

from tests.worker.crew import Crew


@pytest.fixture(scope="module")
def crew(enlist: Any) -> Crew:
    """A server and one prefork worker."""
    made: Crew = enlist("prefork")
    return made


@pytest.fixture
def echo(crew: Crew) -> Any:
    return crew.app.tasks["endings.echo"]


@pytest.fixture
def total(crew: Crew) -> Any:
    return crew.app.tasks["endings.total"]


def test_a_chords_body_may_be_a_group_of_chains(crew: Crew, echo: Any) -> None:
    body = chord([echo.s(1), echo.s(2)], group(echo.s() | echo.s(), echo.s())).apply_async()
    assert body.get(timeout=20) == [[1, 2], [1, 2]]


def test_a_chords_body_may_be_a_chain_that_ends_in_a_chord(crew: Crew, echo: Any, total: Any) -> None:
    body = chord([echo.s(1), echo.s(2)], chain(total.s(), group(echo.s(), echo.s()), total.s())).apply_async()
    assert body.get(timeout=20) == 6


@pytest.mark.parametrize("kind", ["chord", "group", "chain"])
def test_a_task_within_a_chain_may_replace_itself_by_a_canvas(crew: Crew, echo: Any, total: Any, kind: str) -> None:
    replace = crew.app.tasks["endings.replace_by"]
    result = chain(echo.s(2), replace.s(kind), echo.s()).apply_async()
    assert result.get(timeout=20) == {"chord": 3, "group": [2, 3], "chain": 4}[kind]


def test_a_task_that_publishes_very_many_ends_and_its_first_children_are_on_record(crew: Crew) -> None:
    row = crew.ended(task_id := crew.send("publish", 1100))
    assert (row.status, row.result, len(row.children or [])) == ("succeeded", "done", 1000)
    assert crew.events(task_id)[-1].data["children_left_out"] == 100


def test_the_limit_of_results_is_no_limit_of_a_chords_body(crew: Crew, echo: Any) -> None:
    body = chord([echo.s(1)], crew.app.tasks["endings.length"].s("x" * 1_200_000)).apply_async()
    assert body.get(timeout=20) == 1_200_000


def test_a_result_within_the_limit_is_kept_whatever_else_is_told_of_its_run(crew: Crew, echo: Any) -> None:
    text = "x" * (crew.settings.outcome_limit - 1000)
    assert echo.apply_async((text,), root_id="r" * 200, parent_id="p" * 200).get(timeout=20) == text


def test_a_chord_has_the_values_of_parts_that_ignore_their_results(crew: Crew, echo: Any) -> None:
    parts = [echo.s(number).set(ignore_result=True) for number in (1, 2)]
    assert chord(parts, echo.s()).apply_async().get(timeout=20) == [1, 2]


def test_a_group_is_joined_natively_and_a_client_hears_of_each_end(crew: Crew, echo: Any) -> None:
    result = group(echo.s(1), echo.s(2), echo.s(1)).apply_async()
    heard: list[str] = []
    assert result.join_native(timeout=20) == [1, 2, 1]
    assert {meta["result"] for _, meta in result.iter_native(timeout=20)} == {1, 2}
    assert result.get(timeout=20, on_message=lambda meta: heard.append(meta["status"])) == [1, 2, 1]
    assert heard == ["SUCCESS"] * 3
    echo.apply_async((3,)).get(timeout=20, on_message=lambda meta: heard.append(meta["result"]))
    assert heard[-1] == 3
    with pytest.raises(CeleryTimeoutError):
        group(echo.s(1).set(queue="nobodys"), echo.s(2)).apply_async().get(timeout=0.3)
