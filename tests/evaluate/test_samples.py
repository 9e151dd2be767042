"""Files of samples: read in every format, written whole, and safe from being killed."""

import errno
import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmask.data.task import Task
from unmask.errors import TaskError
from unmask.evaluate import samples as module
from unmask.evaluate.samples import (
    EvalPlusResult,
    Sample,
    SampleLog,
    evalplus_status,
    read_evalplus_results,
    read_samples,
    to_line,
    write_evalplus,
    write_evalplus_results,
    write_human_eval,
    write_samples,
)

PROMPT = '\n\ndef f():\n    """Say one."""\n'
TASKS = [Task(task_id=f"HumanEval/{i}", prompt=PROMPT, entry_point="f") for i in range(4)]
WHOLE = Sample(
    task_id="HumanEval/1",
    sample=2,
    cell="t0.2",
    seed=2**62,
    raw="    return 1\nprint(",
    completion="    return 1",
    program=PROMPT + "    return 1",
    raw_program=PROMPT + "    return 1",
    prompt_tokens=12,
    num_tokens=5,
    wasted_tokens=3,
    num_forwards=8,
    positions_computed=160,
    seconds=0.25,
    finish_reason="length",
)


def lines(path: Path, *rows: Any) -> Path:
    path.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path, **options: Any) -> list[Sample]:
    return read_samples(path, TASKS, partial=True, **options)


# Our own format


def test_samples_come_back_as_they_were_written(tmp_path: Path) -> None:
    samples = [WHOLE, Sample(task_id="HumanEval/0"), Sample(task_id="HumanEval/1", sample=2, cell="other")]
    for name in ("samples.jsonl", "samples.jsonl.gz"):
        write_samples(tmp_path / name, samples)
        assert read(tmp_path / name) == samples
    assert json.loads((tmp_path / "samples.jsonl").read_text().splitlines()[0])["unmask"] == 1


@given(text=st.text())
def test_any_text_survives_a_line(text: str) -> None:
    line = to_line(Sample(task_id="HumanEval/0", raw=text))
    assert line.isascii()
    assert line.count("\n") == 1
    assert json.loads(line)["raw"] == text


def test_lone_surrogates_and_null_bytes_survive_a_file(tmp_path: Path) -> None:
    sample = Sample(task_id="HumanEval/0", raw="\ud800\x00\u2028")
    write_samples(tmp_path / "s.jsonl", [sample])
    assert read(tmp_path / "s.jsonl") == [sample]


def test_a_sample_that_stands_twice_is_refused(tmp_path: Path) -> None:
    path = lines(tmp_path / "s.jsonl", to_line(WHOLE), "\n", to_line(WHOLE))
    with pytest.raises(TaskError, match=r"line 3: sample 2 of HumanEval/1 stands on line 1 already"):
        read(path)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"unmask": 2, "task_id": "HumanEval/0"}, "line 1: version 2 of the sample format is not known, only 1"),
        (
            {"unmask": 1, "task_id": "HumanEval/0", "programm": ""},
            "'programm' is no field of a sample; did you mean prog",
        ),
        ({"unmask": 1, "task_id": "HumanEval/0", "sample": "0"}, "sample is '0', which is no int"),
        ({"unmask": 1, "task_id": "HumanEval/0", "sample": True}, "sample is True, which is no int"),
    ],
)
def test_a_line_of_ours_that_is_wrong_says_how(tmp_path: Path, row: dict[str, Any], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        read(lines(tmp_path / "s.jsonl", row))


# Other formats


def test_evalplus_solutions_are_programs_and_completions_follow_the_prompt(tmp_path: Path) -> None:
    path = lines(
        tmp_path / "s.jsonl",
        {"task_id": "HumanEval/1", "solution": "def f(): pass", "_identifier": "x"},
        {"task_id": "HumanEval/0", "completion": "    return 1"},
        {"task_id": "HumanEval/1", "solution": "S", "completion": "C"},
    )
    first, second, third = read(path)
    assert (first.task_id, first.sample, first.program) == ("HumanEval/1", 0, "def f(): pass")
    assert (second.sample, second.program, second.completion) == (0, PROMPT + "    return 1", "    return 1")
    assert (third.sample, third.program) == (1, "S")


def test_completions_of_a_hole_are_followed_by_its_suffix(tmp_path: Path) -> None:
    task = Task(task_id="SingleLineInfilling/0", prompt="a\n", suffix="\nc", entry_point="f")
    path = lines(tmp_path / "s.jsonl", {"task_id": task.task_id, "completion": "b"})
    assert read_samples(path, [task])[0].program == "a\nb\nc"


def test_a_folder_of_programs_is_read_in_the_order_of_their_numbers(tmp_path: Path) -> None:
    for task_id, number in [("HumanEval_0", 10), ("HumanEval_0", 9), ("HumanEval_3", 0)]:
        (tmp_path / task_id).mkdir(exist_ok=True)
        (tmp_path / task_id / f"{number}.py").write_text(f"x = {number}")
    (tmp_path / "HumanEval_0" / "notes.txt").write_text("no sample")
    (tmp_path / "readme.md").write_text("no folder")
    assert [(s.task_id, s.sample, s.program) for s in read(tmp_path)] == [
        ("HumanEval/0", 9, "x = 9"),
        ("HumanEval/0", 10, "x = 10"),
        ("HumanEval/3", 0, "x = 0"),
    ]


def test_a_folder_with_other_names_is_refused(tmp_path: Path) -> None:
    (tmp_path / "HumanEval_0").mkdir()
    (tmp_path / "HumanEval_0" / "best.py").write_text("x")
    with pytest.raises(TaskError, match=r"best.py is named neither 0.py nor by another number"):
        read(tmp_path)
    (tmp_path / "HumanEval_0" / "best.py").unlink()
    (tmp_path / "HumanEvl_1").mkdir()
    with pytest.raises(TaskError, match="no task 'HumanEvl_1'; did you mean HumanEval_1"):
        read(tmp_path)


def test_empty_completions_are_kept_and_say_so(tmp_path: Path) -> None:
    path = lines(tmp_path / "s.jsonl", {"task_id": "HumanEval/0", "completion": " \n"})
    assert [sample.is_empty for sample in read(path)] == [True]
    assert not WHOLE.is_empty


# Bad input


def test_missing_tasks_are_counted_and_named(tmp_path: Path) -> None:
    path = lines(tmp_path / "s.jsonl", {"task_id": "HumanEval/2", "solution": "x"})
    with pytest.raises(TaskError, match=r"no sample for 3 of 4 tasks \(HumanEval/0, HumanEval/1, HumanEval/3\)"):
        read_samples(path, TASKS)
    with pytest.raises(TaskError, match=r"for 4 of 5 tasks \(HumanEval/0, HumanEval/1, HumanEval/3, …\).*--partial"):
        read_samples(path, [*TASKS, Task(task_id="HumanEval/4", prompt="")])
    assert len(read_samples(path, TASKS, partial=True)) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            '{"task_id": "HumanEval/0", "solution": "x"',
            r"line 2 is no JSON: .*; each line has to be one whole JSON object",
        ),
        ("[" * 100_000 + "\n", "line 2 is no JSON"),
        ("[1]\n", "line 2 is a JSON list"),
        ('{"solution": "x"}\n', 'line 2: a sample needs "task_id".* it has solution'),
        ('{"task_id": 7}\n', 'needs "task_id"'),
        ('{"task_id": "HumanEval/0"}\n', 'line 2: a sample needs "solution" or "completion"; it has task_id'),
        ('{"task_id": "HumanEval/0", "solution": ["x"]}\n', "solution is list, and has to be text; .* several lines"),
        ('{"task_id": "HumanEval/0", "solution": null}\n', "solution is NoneType"),
        (
            '{"task_id": "HumanEva/0", "solution": "x"}\n',
            "line 2: the benchmark has no task 'HumanEva/0'; did you mean",
        ),
        ('{"task_id": "zzz", "solution": "x"}\n', "no task 'zzz'; its ids look like HumanEval/0, HumanEval/1, Hum"),
    ],
)
def test_a_line_that_is_wrong_is_named(tmp_path: Path, line: str, message: str) -> None:
    path = lines(tmp_path / "s.jsonl", {"task_id": "HumanEval/0", "solution": "x"}, line)
    with pytest.raises(TaskError, match=message):
        read(path)


def test_files_that_are_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="cannot be read: No such file"):
        read(tmp_path / "none.jsonl")
    (tmp_path / "empty.jsonl").write_text("\n\n")
    with pytest.raises(TaskError, match=r"empty.jsonl holds no samples"):
        read(tmp_path / "empty.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b'{}\n{"task_id": "\xe9"}')
    with pytest.raises(TaskError, match=r"line 1: a sample needs"):
        read(tmp_path / "latin.jsonl")
    (tmp_path / "latin.jsonl").write_bytes(b'{"task_id": "\xe9"}')
    with pytest.raises(TaskError, match=r"line 1: byte 13 \(0xe9\) is not UTF-8"):
        read(tmp_path / "latin.jsonl")
    (tmp_path / "half.jsonl.gz").write_bytes(gzip.compress(b'{"task_id": 1}' * 100)[:-9])
    with pytest.raises(TaskError, match="is no whole gzip file"):
        read(tmp_path / "half.jsonl.gz")


# The log of a run


def test_a_log_goes_on_where_it_was_left(tmp_path: Path) -> None:
    path = tmp_path / "run" / "samples.jsonl"
    other = Sample(task_id="HumanEval/0")
    with SampleLog(path) as log:
        assert log.samples == []
        log.append([WHOLE])
    with SampleLog(path) as log:
        assert log.samples == [WHOLE]
        log.append([other])
    assert path.read_text() == to_line(WHOLE) + to_line(other)


@pytest.mark.parametrize("kept", range(1, len(to_line(WHOLE)), 60))
def test_a_torn_last_line_is_dropped(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "samples.jsonl"
    torn = to_line(Sample(task_id="HumanEval/0"))[:kept].rstrip("\n")
    path.write_text(to_line(WHOLE) + torn)
    with SampleLog(path) as log:
        assert log.samples == [WHOLE]
        log.append([Sample(task_id="HumanEval/2")])
    assert path.read_text() == to_line(WHOLE) + to_line(Sample(task_id="HumanEval/2"))


@pytest.mark.parametrize("end", ["", "\n"])
def test_a_log_that_is_not_ours_is_left_alone(tmp_path: Path, end: str) -> None:
    path = tmp_path / "samples.jsonl"
    path.write_text('{"task_id": "HumanEval/0", "solution": "x"}' + end)
    before = path.read_bytes()
    with pytest.raises(TaskError, match=r"line.* was not written by a run; give the run an --output of its own"):
        SampleLog(path)
    assert path.read_bytes() == before


def test_a_log_that_cannot_be_opened_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(TaskError, match=r"samples.jsonl cannot be written: .*; give another --output"):
        SampleLog(tmp_path / "file" / "samples.jsonl")


def test_a_batch_is_on_the_disk_when_append_returns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, sizes = tmp_path / "samples.jsonl", []
    monkeypatch.setattr(module.os, "fsync", lambda _: sizes.append(path.stat().st_size))
    with SampleLog(path) as log:
        log.append([WHOLE, Sample(task_id="HumanEval/0")])
    assert sizes == [len(to_line(WHOLE)) + len(to_line(Sample(task_id="HumanEval/0")))]


def test_a_full_disk_leaves_whole_batches_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "samples.jsonl"

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with SampleLog(path) as log:
        log.append([WHOLE])
        with monkeypatch.context() as patch:
            patch.setattr(module.os, "fsync", full)
            with pytest.raises(
                TaskError, match=r"cannot be written: No space left .*make room and run the same command"
            ):
                log.append([Sample(task_id="HumanEval/0")])
        assert path.read_text() == to_line(WHOLE)
        log.append([Sample(task_id="HumanEval/2")])
    assert [sample.task_id for sample in read(path)] == ["HumanEval/1", "HumanEval/2"]


# Written for the official tools


def test_evalplus_gets_programs_and_raw_programs(tmp_path: Path) -> None:
    sample = Sample(task_id="HumanEval/0", completion="c", program="p", raw_program="r")
    write_evalplus(tmp_path / "s.jsonl", [sample])
    write_evalplus(tmp_path / "s.raw.jsonl", [sample], raw=True)
    assert json.loads((tmp_path / "s.jsonl").read_text()) == {"task_id": "HumanEval/0", "solution": "p"}
    assert json.loads((tmp_path / "s.raw.jsonl").read_text()) == {"task_id": "HumanEval/0", "solution": "r"}
    assert read(tmp_path / "s.jsonl")[0].program == "p"


@pytest.mark.parametrize(
    ("program", "completion"),
    [
        (PROMPT + "    return 1", "    return 1"),
        (PROMPT.strip() + "\n    return 1", "    return 1"),
        ("def f():\n    return 1", "\ndef f():\n    return 1"),
    ],
)
def test_human_eval_gets_what_follows_the_prompt(tmp_path: Path, program: str, completion: str) -> None:
    write_human_eval(tmp_path / "s.jsonl", [Sample(task_id="HumanEval/0", program=program)], TASKS)
    assert json.loads((tmp_path / "s.jsonl").read_text()) == {"task_id": "HumanEval/0", "completion": completion}


def test_a_prompt_that_ends_in_spaces_is_not_taken_for_its_stripped_form(tmp_path: Path) -> None:
    task = Task(task_id="x/0", prompt="def f():\n    ", entry_point="f")
    write_human_eval(tmp_path / "s.jsonl", [Sample(task_id="x/0", program="def f():\n    return 1")], [task])
    assert json.loads((tmp_path / "s.jsonl").read_text())["completion"] == "return 1"
    write_human_eval(tmp_path / "s.jsonl", [Sample(task_id="x/0", program="def f():\n  return 1")], [task])
    assert json.loads((tmp_path / "s.jsonl").read_text())["completion"] == "\ndef f():\n  return 1"


def test_evalplus_results_come_back_with_their_scores(tmp_path: Path) -> None:
    rows = [
        EvalPlusResult(task_id="HumanEval/0", solution="a", base_status="pass", plus_status="pass"),
        EvalPlusResult(
            task_id="HumanEval/0",
            solution="b",
            base_status="fail",
            plus_status="pass",
            base_fail_tests=([1, 2],),
        ),
        EvalPlusResult(task_id="HumanEval/1", solution="c", base_status="pass", plus_status="timeout"),
        EvalPlusResult(task_id="HumanEval/1", solution="d", base_status="pass", plus_status="fail"),
    ]
    path = tmp_path / "x_eval_results.json"
    write_evalplus_results(path, rows, data_hash="abc", date="2026-01-02 03:04")
    record = json.loads(path.read_text())
    assert (record["date"], record["hash"]) == ("2026-01-02 03:04", "abc")
    assert record["pass_at_k"] == {"base": {"pass@1": 0.75}, "plus": {"pass@1": 0.25}}
    assert record["eval"]["HumanEval/1"][0] == {
        "task_id": "HumanEval/1",
        "solution": "c",
        "base_status": "pass",
        "plus_status": "timeout",
        "base_fail_tests": [],
        "plus_fail_tests": [],
    }
    assert read_evalplus_results(path) == rows


def test_base_tests_alone_give_no_plus_score(tmp_path: Path) -> None:
    rows = [EvalPlusResult(task_id="HumanEval/0", solution="a", base_status="pass")] * 10
    write_evalplus_results(tmp_path / "r.json", rows, data_hash="", date="")
    assert json.loads((tmp_path / "r.json").read_text())["pass_at_k"] == {"base": {"pass@1": 1.0, "pass@10": 1.0}}


def test_other_files_are_no_results(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match='has no "eval": it is no result file of EvalPlus'):
        read_evalplus_results(lines(tmp_path / "r.json", {"task_id": "x"}))
    with pytest.raises(TaskError, match=r"HumanEval/0: a row lacks what EvalPlus 0.2 and later write \('task_id'\)"):
        read_evalplus_results(lines(tmp_path / "r.json", {"eval": {"HumanEval/0": [{}]}}))


def test_verdicts_are_translated_and_sandbox_errors_are_not() -> None:
    assert [evalplus_status(status) for status in ("pass", "timeout", "crash")] == ["pass", "timeout", "fail"]
    with pytest.raises(TaskError, match="a sandbox error says nothing about a program"):
        evalplus_status("sandbox_error")


def test_a_file_that_cannot_be_written_is_named_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "taken").mkdir()
    with pytest.raises(TaskError, match="taken cannot be written"):
        write_samples(tmp_path / "taken", [WHOLE])
    assert [entry.name for entry in tmp_path.iterdir()] == ["taken"]
