"""What JSON takes in memory is never more than was estimated before it was parsed."""

import gc
import json
import tracemalloc

import pytest

from howl.bounded_json import SMALLEST, WORST, TooLarge, parse, parsed_size

SIZE = 1 << 18


def _filled(unit: str) -> str:
    return "[" + ",".join([unit] * (SIZE // (len(unit.encode()) + 1))) + "]"


DOCUMENTS = {
    **{unit[:20]: _filled(unit) for unit in (
        "[]", "{}", "[1]", "[[]]", '{"a":{}}', '{"a":1}', '{"":0}', '{"a":1,"b":2}', "1", "1000", "1.5", "null", '""',
        '"ab"', '"abcd"', '"é"', '"一"', '"😀"', '"\\u0000"', "[1,1,1,1,1]", "12345678901234567890",
        "[" * 200 + "]" * 200, '{"a":' * 100 + "1" + "}" * 100,
    )},
    "a text": '"' + "x" * SIZE + '"',
    "a text with an emoji": '"' + "x" * SIZE + '😀"',
    "a text with an escape": '"' + "x" * SIZE + '\\ud83d\\ude00"',
    "a text of escapes": '"' + "\\u0000" * (SIZE // 6) + '"',
    "keys": json.dumps({f"{number:x}": 0 for number in range(SIZE // 12)}),
    "keys of lists": json.dumps({f"{number:x}": [] for number in range(SIZE // 13)}),
    "objects of different keys": json.dumps([{f"{number:x}": 0} for number in range(SIZE // 15)]),
    "nothing": "0",
}  # fmt: skip


@pytest.mark.parametrize("kind", DOCUMENTS)
def test_the_estimate_is_never_less_than_what_a_document_takes(kind: str) -> None:
    document = DOCUMENTS[kind].encode()
    gc.collect()
    tracemalloc.start()
    try:
        parsed = parse(document, 1 << 40)
        taken = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert parsed == json.loads(document)
    assert taken <= parsed_size(document) <= SMALLEST + WORST * len(document)


def test_what_might_take_more_than_is_allowed_is_not_parsed() -> None:
    with pytest.raises(TooLarge, match=r"[\d,]+ bytes of memory"):
        parse(DOCUMENTS["[]"].encode(), SIZE)
