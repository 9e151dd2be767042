"""A file under way: what is counted is there, what is not is cut away, and only the same work goes on in it."""

import json
import os
from collections import Counter
from pathlib import Path

import pytest

from unmask.data.partial import Partial, open_partial
from unmask.errors import DataError

ASKED = {"model": "tiny", "temperature": 0.5}


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "answers.jsonl"


def begun(output: Path) -> Partial:
    partial = open_partial(output, ASKED, resume=False)
    partial.append([{"a": "é"}, {"a": 2}], done=3, left_out={"cut": 1})
    return partial


def test_batches_are_added_and_the_file_gets_its_name_at_the_end(output: Path) -> None:
    partial = begun(output)
    partial.append([], done=2, left_out={"cut": 1, "empty": 1})
    assert (partial.done, partial.lines, partial.left_out) == (5, 2, {"cut": 2, "empty": 1})
    assert sorted(path.name for path in output.parent.iterdir()) == [
        "answers.jsonl.partial",
        "answers.jsonl.partial.json",
    ]
    partial.finish()
    assert list(output.parent.iterdir()) == [output]
    assert output.read_text(encoding="utf-8") == '{"a": "é"}\n{"a": 2}\n'


def test_lines_reach_the_disk_before_the_note_that_counts_them(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    partial = begun(output)
    flush, flushed = os.fsync, []

    def fail_at_the_second(descriptor: int) -> None:
        flushed.append(partial.path.read_bytes())
        if len(flushed) == 2:
            raise KeyboardInterrupt
        flush(descriptor)

    monkeypatch.setattr(os, "fsync", fail_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        partial.append([{"a": 3}], done=1, left_out={})
    assert flushed[0].endswith(b'{"a": 3}\n')
    assert json.loads(partial.note.read_text())["lines"] == 2


def test_work_goes_on_behind_the_last_whole_batch(output: Path) -> None:
    partial = begun(output)
    whole = partial.path.read_bytes()
    partial.path.write_bytes(whole + b'{"a": 3}\n{"a"')
    again = open_partial(output, ASKED, resume=True)
    assert again.path.read_bytes() == whole
    assert (again.done, again.lines, again.left_out) == (3, 2, Counter({"cut": 1}))
    again.append([{"a": 3}], done=1, left_out={})
    again.finish()
    assert len(output.read_text().splitlines()) == 3


def test_to_resume_nothing_is_to_begin(output: Path) -> None:
    assert open_partial(output, ASKED, resume=True).done == 0


def test_work_under_way_is_not_begun_anew(output: Path) -> None:
    begun(output)
    with pytest.raises(DataError, match=r"partial is work under way towards answers\.jsonl; go on with it by --resume"):
        open_partial(output, ASKED, resume=False)


def test_other_work_does_not_go_on_in_it(output: Path) -> None:
    begun(output)
    with pytest.raises(
        DataError, match=r"was begun with something else: temperature \(0\.5 there, 0 here\); top_p \(None there, 0\.9"
    ):
        open_partial(output, {**ASKED, "temperature": 0, "top_p": 0.9}, resume=True)


@pytest.mark.parametrize("note", [None, "{", "[]", '{"done": 1}'])
def test_a_file_without_its_note_is_no_work(output: Path, note: str | None) -> None:
    partial = begun(output)
    partial.note.unlink()
    if note is not None:
        partial.note.write_text(note)
    with pytest.raises(DataError, match=r"partial\.json is missing or damaged .* delete that file to begin anew"):
        open_partial(output, ASKED, resume=True)


def test_a_file_that_lost_bytes_is_named(output: Path) -> None:
    partial = begun(output)
    partial.path.write_bytes(b"{}")
    with pytest.raises(DataError, match=r"has 2 bytes, and 21 were written: it was cut off; delete it to begin anew"):
        open_partial(output, ASKED, resume=True)


def test_two_processes_do_not_write_one_file(output: Path) -> None:
    one = begun(output)
    two = open_partial(output, ASKED, resume=True)
    two.append([{"a": 3}], done=1, left_out={})
    with pytest.raises(DataError, match="another process is at work on it; stop one of the two"):
        one.append([{"a": 3}], done=1, left_out={})


def test_a_file_that_came_up_meanwhile_is_not_written_over(output: Path) -> None:
    partial = begun(output)
    output.write_text("mine")
    with pytest.raises(DataError, match=r"answers\.jsonl has come up meanwhile; rename it, and go on with --resume"):
        partial.finish()
    assert output.read_text() == "mine"
    output.unlink()
    open_partial(output, ASKED, resume=True).finish()
    assert output.exists()
