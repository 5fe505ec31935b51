"""Reading JUnit files, whoever wrote them."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from workers import junit
from workers.junit import FILE_LIMIT, Unreadable

ROOM = 100_000
SUITE = """<?xml version="1.0" encoding="utf-8"?>
<testsuites tests="99" failures="99"><testsuite name="all" tests="99">
<testcase classname="a.B" name="well" time="1.5"/>
<testcase classname="a.B" name="wrong" time="0.25"><failure message="1 != 2">lines &lt;here></failure></testcase>
<testcase name="broken" time="1,000.25"><error type="OSError"/><failure message="and more"/></testcase>
<testcase classname="a.B" name="later" time="soon"><skipped/></testcase>
</testsuite></testsuites>"""

#: A billion laughs, in a few lines.
BOMB = """<?xml version="1.0"?><!DOCTYPE x [<!ENTITY a "ha">{}]><testsuite><testcase name="&i;"/></testsuite>""".format(
    "".join(f'<!ENTITY {name} "{f"&{before};" * 10}">' for before, name in zip("abcdefgh", "bcdefghi", strict=True))
)


@pytest.fixture
def written(tmp_path: Path):
    def write(text: str | bytes) -> Path:
        path = tmp_path / "junit.xml"
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return path

    return write


def test_tests_are_counted_one_by_one_whatever_the_suite_says_of_itself(written):
    counts, failing, left_out = junit.read(written(SUITE), ROOM)
    assert counts == {"tests": 4, "failures": 1, "errors": 1, "skipped": 1, "time": 1002.0}
    assert failing == [{"name": "a.B::wrong", "message": "1 != 2"}, {"name": "broken", "message": "OSError"}]
    assert left_out == 0


def test_what_pytest_writes_is_read(tmp_path: Path):
    (tmp_path / "test_it.py").write_text(
        "import pytest\ndef test_a(): pass\ndef test_b(): assert 1 == 2\n@pytest.mark.skip\ndef test_c(): pass\n"
        "@pytest.fixture\ndef broken(): raise OSError('no')\ndef test_d(broken): pass\n"
    )
    argv = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:xdist",
        "-c",
        os.devnull,
        "--rootdir",
        ".",
        "--junitxml",
        "out.xml",
        ".",
    ]
    subprocess.run(argv, cwd=tmp_path, capture_output=True, timeout=60, check=False)
    counts, failing, _ = junit.read(tmp_path / "out.xml", ROOM)
    assert (counts["tests"], counts["failures"], counts["errors"], counts["skipped"]) == (4, 1, 1, 1)
    assert failing[0] == {"name": "test_it::test_b", "message": "assert 1 == 2"}


def test_a_hundred_thousand_failing_tests_are_counted_and_told_of_as_far_as_there_is_room(written):
    case = "<testcase name='{}'><failure message='{}'/></testcase>"
    path = written("<testsuite>" + "".join(case.format(n, "é" * 100) for n in range(100_000)) + "</testsuite>")
    counts, failing, left_out = junit.read(path, 10_000)
    assert counts["failures"] == 100_000
    assert 5 < len(failing) < 50
    assert len(failing) + left_out == 100_000


def test_a_message_of_a_megabyte_is_cut(written):
    path = written(f"<testsuite><testcase name='x'><failure message='{'y' * 1_000_000}'/></testcase></testsuite>")
    assert [len(failing["message"]) for failing in junit.read(path, ROOM)[1]] == [junit.MESSAGE_LIMIT]


@pytest.mark.parametrize("number", ["nan", "inf", "-5", "1e999", ""])
def test_times_that_are_none_count_nothing(written, number: str):
    path = written(f"<testsuite><testcase time='{number}'/><testcase time='2'/></testsuite>")
    assert junit.read(path, ROOM)[0]["time"] == 2.0


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "iso-8859-1", "cp1252"])
def test_a_file_is_read_in_the_encoding_that_it_names(written, encoding: str):
    text = f"<?xml version='1.0' encoding='{encoding}'?><testsuite><testcase name='é'><error/></testcase></testsuite>"
    assert junit.read(written(text.encode(encoding)), ROOM)[1] == [{"name": "é", "message": "error"}]


def test_html_in_a_message_is_no_document_type(written):
    text = "<testsuite><testcase name='x'><failure><![CDATA[<!DOCTYPE html>]]></failure></testcase></testsuite>"
    assert junit.read(written(text), ROOM)[0]["failures"] == 1


BAD = {
    "broken": ("<testsuite><testcase>", "no element found"),
    "empty": ("", "no element found"),
    "no XML": ("all tests passed", "syntax error"),
    "not UTF-8": (b"<testsuite name='\xff'/>", "not well-formed"),
    "an encoding that nobody knows": (b'<?xml version="1.0" encoding="cp0"?><x/>', "unknown encoding"),
    "an encoding that is none": (b'<?xml version="1.0" encoding="zip"?><x/>', "is not a text encoding"),
    "a bomb": (BOMB, "declares a document type"),
    "a bomb in another alphabet": (
        b'<?xml version="1.0" encoding="cp037"?>' + "<!DOCTYPE x []><x/>".encode("cp037"),
        "unknown encoding",
    ),
    "a file of the system": (
        '<!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><testsuite>&e;</testsuite>',
        "declares a document type",
    ),
}


@pytest.mark.parametrize("what", BAD)
def test_what_cannot_be_read_is_said_in_a_sentence(written, what: str):
    text, reason = BAD[what]
    with pytest.raises(Unreadable, match=f"The JUnit file .*{reason}"):
        junit.read(written(text), ROOM)


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path):
    path = tmp_path / "junit.xml"
    with path.open("wb") as file:
        file.truncate(FILE_LIMIT + 1)
    with pytest.raises(Unreadable, match="more than 64,000,000 bytes"):
        junit.read(path, ROOM)


def test_what_is_no_file_is_not_waited_for(tmp_path: Path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "nothing", tmp_path, tmp_path / "pipe"):
        with pytest.raises(Unreadable, match=r"No JUnit file was written\."):
            junit.read(path, ROOM)


@pytest.mark.skipif(sys.platform != "linux", reason="the peak of memory is read from /proc")
def test_a_large_file_takes_little_memory(written):
    path = written("<testsuite>" + "<testcase name='x'><failure/></testcase>" * 300_000 + "</testsuite>")
    Path("/proc/self/clear_refs").write_text("5")
    before = _peak()
    assert junit.read(path, ROOM)[0]["tests"] == 300_000
    assert _peak() - before < 10_000_000


def _peak() -> int:
    return int(re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())[0]) * 1024
