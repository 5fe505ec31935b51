"""How values read to people."""

from datetime import UTC, datetime, timedelta

import pytest

from howl.cli.ui import formats


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.2, "now"), (12.4, "12 s ago"), (61, "1 min ago"), (7300, "2 h ago"), (180_000, "2 d ago"), (-301, "in 5 min")],
)
def test_a_moment_reads_as_how_long_ago_it_was(seconds, text):
    assert formats.ago(datetime.now(UTC) - timedelta(seconds=seconds)) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (None, "-"),
        (0.0001, "0.0001 s"),
        (0.0567, "0.057 s"),
        (0.35, "0.35 s"),
        (1, "1 s"),
        (9.999, "10 s"),
        (59.7, "1 min"),
        (312, "5 min 12 s"),
        (3599.6, "1 h"),
        (11_040, "3 h 4 min"),
        (93_600, "1 d 2 h"),
    ],
)
def test_a_length_of_time_reads_as_precisely_as_one_wants_to_know(seconds, text):
    assert formats.length(seconds) == text


def test_a_share_is_100_percent_only_when_nothing_is_missing():
    assert [formats.share(share) for share in (None, 0.29, 0.999, 1.0)] == ["-", "29 %", "99 %", "100 %"]


def test_control_characters_are_written_out():
    assert formats.visible("a\x1b[31mb\nc\x9b\td\ud800") == "a\\x1b[31mb\nc\\x9b\td\\ud800"


def test_an_object_reads_name_by_name_with_texts_of_several_lines_as_blocks():
    value = {"stdout": "one\ntwo\n", "status": 0, "stderr": "", "nested": {"tags": ["x"]}, "none": {}}
    assert formats.document(value) == ('stdout:\n  one\n  two\nstatus: 0\nstderr:\nnested:\n  tags: ["x"]\nnone: {}')


@pytest.mark.parametrize(("value", "text"), [("plain\n", "plain"), (None, "null"), ([1, "ü"], '[1, "ü"]'), ({}, "{}")])
def test_other_values_read_as_json_and_a_text_as_itself(value, text):
    assert formats.document(value) == text


def test_a_long_text_is_clipped_to_one_line():
    assert formats.clipped("one\ntwo", 10) == "one…"
    assert formats.clipped("x" * 20, 10) == "x" * 9 + "…"
    assert formats.clipped("short", 10) == "short"
