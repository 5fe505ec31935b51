"""Lengths of time as people write them."""

import pytest

from howl.durations import LONGEST, parse_duration


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("90", 90), ("90s", 90), ("1.5m", 90), ("2h", 7200), ("7d", 604_800), (" 30m ", 1800), ("3650d", LONGEST)],
)
def test_a_length_of_time_is_read_in_seconds(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "-1", "soon", "1w", "1h30m", "٣s", "1e3", "nan", "3651d", "9" * 5000, "5 m"])
def test_what_is_no_length_of_time_is_refused_with_the_way_to_write_it(text):
    with pytest.raises(ValueError, match="write 90s, 30m, 24h or 7d"):
        parse_duration(text)
