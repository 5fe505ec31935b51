"""Canvas that the server itself submits, or has fail: its values are those of Celery with Redis as its backend."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from celery import chain, chord, group
from celery.exceptions import ChordError
from celery.exceptions import TimeoutError as CeleryTimeoutError

from tests.helpers.crew import Crew

pytestmark = pytest.mark.filterwarnings("ignore:task_allow_error_cb_on_chord_header:PendingDeprecationWarning")


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


def test_a_chord_waits_for_what_its_parts_added_to_it(crew: Crew, echo: Any) -> None:
    add_to_chord = crew.app.tasks["endings.add_to_chord"]
    body = chord([add_to_chord.si(1, 2), echo.si(3), add_to_chord.si(4)], echo.s()).apply_async()
    assert body.get(timeout=20) == ["added", 2, 1, 3, "added", 4]


# --- error callbacks of chords, which the server has fail -------------------------------------------------------------


@pytest.fixture
def fail(crew: Crew) -> Any:
    return crew.app.tasks["endings.fail"]


@pytest.fixture
def callbacks(crew: Crew, tmp_path: Path) -> list[Any]:
    """One of each kind: who takes the request and the error, and who takes an id."""
    return [crew.app.tasks[f"endings.{name}"].s(str(tmp_path / "notes")) for name in ("note_new", "note_old")]


@pytest.fixture
def notes(crew: Crew, tmp_path: Path) -> Callable[..., list[str]]:
    """What error callbacks noted, when all have run that are on record as called for these tasks."""

    def _notes(*failed: str) -> list[str]:
        for task_id in failed:
            for call in _children(crew.ended(task_id).children):
                for callback in _children(crew.ended(call).children):
                    crew.ended(callback)
        return sorted((tmp_path / "notes").read_text().splitlines())

    return _notes


def _children(told: Any) -> Iterator[str]:
    """Ids in Celery's tuples, those in groups as well."""
    for (task_id, _), members in told or []:
        if members is None:
            yield task_id
        else:
            yield from _children(members)


def test_error_callbacks_of_a_chords_body_get_what_they_take_once_each(
    crew: Crew, echo: Any, fail: Any, total: Any, callbacks: list[Any], notes: Any
) -> None:
    canvas = chord([echo.s(1), fail.si()], total.s())
    for callback in callbacks:
        canvas.link_error(callback)
    body = canvas.apply_async()
    with pytest.raises(ValueError, match="as told"):
        body.get(timeout=20)
    assert notes(body.id) == [f"new {body.id} ChordError from ValueError('as told')", f"old {body.id}"]
    with pytest.raises(ChordError, match=r"^Dependency [0-9a-f-]{36} raised ValueError\('as told'\)$"):
        crew.app.AsyncResult(body.id).get(timeout=20)


def test_error_callbacks_of_a_group_as_body_are_called_for_each_of_its_tasks(
    crew: Crew, echo: Any, fail: Any, callbacks: list[Any], notes: Any
) -> None:
    canvas = chord([echo.s(1), fail.si()], group(echo.s(), echo.s()))
    for callback in callbacks:
        canvas.link_error(callback)
    ids = sorted(result.id for result in canvas.apply_async().results)
    expected = [f"new {task_id} ValueError from None" for task_id in ids] + [f"old {task_id}" for task_id in ids]
    assert notes(*ids) == expected
    assert {crew.ended(task_id).error_type for task_id in ids} == {"ValueError"}


def test_a_chord_that_is_the_body_of_a_failing_one_fails_and_has_its_error_callbacks_called(
    crew: Crew, echo: Any, fail: Any, total: Any, callbacks: list[Any], notes: Any
) -> None:
    last = total.s()
    for callback in callbacks:
        last.link_error(callback)
    body = chain(group(echo.s(1), fail.si()), group(echo.s(), echo.s()), last).apply_async()
    assert notes(body.id) == [f"new {body.id} ChordError from ValueError('as told')", f"old {body.id}"]


@pytest.mark.parametrize("levels", [1, 2])
def test_error_callbacks_of_nested_chords_are_called_once(
    crew: Crew, echo: Any, fail: Any, callbacks: list[Any], notes: Any, levels: int
) -> None:
    canvas = chord([echo.s(1), fail.si()], echo.s())
    for _ in range(levels):
        canvas = chord([echo.s(2), canvas], echo.s())
    for callback in callbacks:
        canvas.link_error(callback)
    body = canvas.apply_async()
    inner = body
    for _ in range(levels):
        inner = inner.parent.results[1]
    assert crew.ended(body.id).status == "failed"
    assert notes(inner.id, body.id) == [f"new {inner.id} ChordError from ValueError('as told')", f"old {inner.id}"]


def test_error_callbacks_of_a_chords_parts_are_called_by_the_part_and_by_the_body(
    crew: Crew, echo: Any, fail: Any, total: Any, notes: Any, tmp_path: Path
) -> None:
    canvas = chord([echo.s(1), fail.si()], total.s(), app=crew.app)
    try:
        crew.app.conf.task_allow_error_cb_on_chord_header = True
        canvas.link_error(crew.app.tasks["endings.note_old"].si("said", str(tmp_path / "notes")))
    finally:
        crew.app.conf.task_allow_error_cb_on_chord_header = False
    body = canvas.apply_async()
    assert notes(body.parent.results[1].id, body.id) == ["old said", "old said"]
