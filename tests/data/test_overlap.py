"""Overlap finds what is shared, says where, and finds nothing in what is not."""

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unmask.data.overlap import Overlap, find_overlap, ngrams, words
from unmask.data.task import Task
from unmask.errors import SettingsError, TaskError
from unmask.sandbox.tests import AssertTests

TEXT = "Return the sum of all even numbers that stand at odd places of the list."
TASK = Task(
    task_id="HumanEval/7",
    prompt=f'def f(xs):\n    """{TEXT}"""\n',
    entry_point="f",
    tests={"base": AssertTests(entry_point="f", code="assert f([11, 22, 33, 44, 55, 66, 77, 88, 99]) == 264")},
)
OTHER = Task(task_id="HumanEval/8", prompt="def g(x):\n    return x + 1\n", entry_point="g")


@pytest.fixture
def data() -> Path:
    given = os.environ.get("UNMASK_DATA") or Path(__file__).parents[3] / "shared" / "data"
    if not (Path(given) / "mbpp" / "mbpp.jsonl").is_file():
        pytest.skip("benchmark data is not here; set UNMASK_DATA to its folder")
    return Path(given)


def look(path: Path, *rows: Any, **options: Any) -> Overlap:
    text = "".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows)
    path.write_text(text, encoding="utf-8")
    return find_overlap(path, {"humaneval": [TASK, OTHER]}, **options)


def test_a_copied_text_is_found_with_its_line_and_words(tmp_path: Path) -> None:
    found = look(tmp_path / "t.jsonl", {"text": "nothing"}, {"messages": [{"content": f"Please: {TEXT.upper()}"}]})
    overlap = found.benchmarks["humaneval"]
    assert found.num_documents == 2
    assert overlap.tasks_by_ngram == ("HumanEval/7",)
    assert overlap.tasks_by_id == ()
    assert overlap.num_documents == 1
    assert overlap.num_tasks == 2
    assert overlap.num_too_short == 1  # OTHER has seven words
    [example] = overlap.examples
    assert (example.document, example.kind, example.task_id) == (2, "ngram", "HumanEval/7")
    assert example.shared == "return the sum of all even numbers that stand at"


def test_layout_case_and_punctuation_hide_nothing(tmp_path: Path) -> None:
    hidden = "# " + "\n#   ".join(TEXT.upper().replace("SUM", '"sum",').split())
    assert look(tmp_path / "t.py", hidden).benchmarks["humaneval"].tasks_by_ngram == ("HumanEval/7",)


def test_fewer_shared_words_than_n_are_no_overlap(tmp_path: Path) -> None:
    nine = " ".join(TEXT.split()[:9])
    assert look(tmp_path / "t.txt", nine).benchmarks["humaneval"].tasks_by_ngram == ()
    assert look(tmp_path / "t.txt", nine, n=9).benchmarks["humaneval"].tasks_by_ngram == ("HumanEval/7",)


def test_runs_do_not_go_from_one_field_or_row_into_the_next(tmp_path: Path) -> None:
    first, second = TEXT[:30], TEXT[30:]
    assert look(tmp_path / "t.jsonl", {"a": first, "b": second}).benchmarks["humaneval"].num_documents == 0
    assert look(tmp_path / "t.jsonl", {"a": first}, {"a": second}).benchmarks["humaneval"].num_documents == 0


@pytest.mark.parametrize(
    "row",
    [{"task_id": "HumanEval/8"}, {"id": "humaneval/8"}, {"text": "# from HumanEval/8, by hand"}],
)
def test_ids_are_found_in_fields_and_in_texts(tmp_path: Path, row: dict[str, str]) -> None:
    overlap = look(tmp_path / "t.jsonl", row).benchmarks["humaneval"]
    assert overlap.tasks_by_id == ("HumanEval/8",)
    assert overlap.examples[0].shared == "HumanEval/8"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("HumanEval/7-HumanEval/8", ("HumanEval/7", "HumanEval/8")),
        ("HumanEval/7HumanEval/8", ("HumanEval/7", "HumanEval/8")),
        ("--HumanEval/7", ("HumanEval/7",)),
        ("evals/HumanEval/7/8", ("HumanEval/7",)),
        ("my-HumanEval/7", ()),
        ("HumanEval/ 7", ()),
    ],
)
def test_ids_are_found_beside_whatever_surrounds_them(tmp_path: Path, text: str, expected: tuple[str, ...]) -> None:
    assert look(tmp_path / "t.txt", text).benchmarks["humaneval"].tasks_by_id == expected


@pytest.mark.timeout(60)
@pytest.mark.parametrize("letter", ["a", "-", "a-", "a/", "/7"])
def test_one_word_of_a_million_letters_is_read_in_one_pass(tmp_path: Path, letter: str) -> None:
    overlap = look(tmp_path / "t.txt", letter * 1_000_000 + " HumanEval/8").benchmarks["humaneval"]
    assert overlap.tasks_by_id == ("HumanEval/8",)


def test_a_number_is_an_id_only_in_a_file_with_mbpps_columns(tmp_path: Path) -> None:
    tasks = {"mbpp": [Task(task_id="Mbpp/8", prompt="")]}
    path = tmp_path / "t.jsonl"
    for row, expected in [
        ({"task_id": 8, "code": "", "test_list": []}, ("Mbpp/8",)),
        ({"task_id": 8, "answer": ""}, ()),
        ({"text": "HumanEval/88, Mbpp/80"}, ()),
    ]:
        path.write_text(json.dumps(row))
        assert find_overlap(path, tasks).benchmarks["mbpp"].tasks_by_id == expected


def test_tests_are_compared_only_when_asked(tmp_path: Path) -> None:
    row = {"code": "assert f([11, 22, 33, 44, 55, 66, 77, 88, 99]) == 264"}
    assert look(tmp_path / "t.jsonl", row).benchmarks["humaneval"].tasks_by_ngram == ()
    assert look(tmp_path / "t.jsonl", row, with_tests=True).benchmarks["humaneval"].tasks_by_ngram == ("HumanEval/7",)


def test_benchmarks_are_reported_apart(tmp_path: Path) -> None:
    path = tmp_path / "t.md"
    path.write_text(TEXT)
    found = find_overlap(path, {"a": [TASK], "b": [OTHER]})
    assert found.benchmarks["a"].num_documents == 1
    assert found.benchmarks["b"].num_documents == 0


def test_examples_are_few_and_of_different_tasks(tmp_path: Path) -> None:
    tasks = [Task(task_id=f"x/{i}", prompt=" ".join(f"w{i}v{j}" for j in range(30))) for i in range(20)]
    path = tmp_path / "t.txt"
    path.write_text("\n".join(task.prompt for task in tasks))
    overlap = find_overlap(path, {"x": tasks}).benchmarks["x"]
    assert len(overlap.tasks_by_ngram) == 20
    assert [example.task_id for example in overlap.examples] == [f"x/{i}" for i in range(5)]


def test_packed_files_and_arrays_are_read(tmp_path: Path) -> None:
    with gzip.open(tmp_path / "t.jsonl.gz", "wt") as file:
        file.write(json.dumps({"text": TEXT}))
    (tmp_path / "t.json").write_text(json.dumps([{"text": "x"}, TEXT]))
    for name, document in [("t.jsonl.gz", 1), ("t.json", 2)]:
        overlap = find_overlap(tmp_path / name, {"humaneval": [TASK]}).benchmarks["humaneval"]
        assert [example.document for example in overlap.examples] == [document]


@given(text=st.text(alphabet="aAbB1_- \n.é", max_size=80), n=st.integers(1, 4))
def test_ngrams_are_all_slices_of_the_words(text: str, n: int) -> None:
    expected = "".join(c.lower() if c.isalnum() else " " for c in text).split()
    assert list(words(text)) == expected
    assert list(ngrams(words(text), n)) == [" ".join(expected[i : i + n]) for i in range(len(expected) - n + 1)]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (
            "t.parquet",
            b"PAR1",
            r"t.parquet ends in .parquet, and overlap reads text; .* write other formats as JSON lines",
        ),
        ("t", b"x", "ends in nothing"),
        ("t.jsonl", b"", "holds no documents"),
        ("t.txt", b"", "holds no documents"),
        ("t.jsonl", b'{"a": 1}\n{"a"', "line 2 is no JSON"),
        ("t.json", b'{"a": 1}', "is a JSON dict; give an array of rows, or JSON lines"),
        ("t.txt", b"ok\n\xff\n", r"line 2: byte 0 \(0xff\) is not UTF-8"),
        ("t.txt.gz", b"x", "is no whole gzip file"),
    ],
)
def test_files_that_cannot_be_compared_are_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TaskError, match=message):
        find_overlap(tmp_path / name, {"humaneval": [TASK]})


def test_a_missing_file_and_settings_without_sense_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="cannot be read: No such file"):
        find_overlap(tmp_path / "t.jsonl", {"humaneval": [TASK]})
    with pytest.raises(SettingsError, match="n=0: a run has at least one word; 10 is usual"):
        look(tmp_path / "t.txt", TEXT, n=0)
    with pytest.raises(SettingsError, match="no benchmark was named"):
        find_overlap(tmp_path / "t.txt", {})


def test_mbpp_plus_shares_154_tasks_with_mbpps_other_splits(data: Path, tmp_path: Path) -> None:
    """108 with the training split, 39 with validation, 7 with the prompt split."""
    with gzip.open(data / "mbppplus" / "MbppPlus.jsonl.gz", "rt", encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    tasks = [
        Task(task_id=row["task_id"], prompt=row["prompt"], reference=row["prompt"] + row["canonical_solution"])
        for row in rows
    ]
    plus_ids = {int(task.task_id.removeprefix("Mbpp/")) for task in tasks}
    mbpp = (data / "mbpp" / "mbpp.jsonl").read_text(encoding="utf-8").splitlines()

    def shared(ids: range, but: set[int] = frozenset()) -> Overlap:  # type: ignore[assignment]
        path = tmp_path / "split.jsonl"
        kept = [line for line in mbpp if json.loads(line)["task_id"] in ids and json.loads(line)["task_id"] not in but]
        path.write_text("\n".join(kept), encoding="utf-8")
        return find_overlap(path, {"mbpp+": tasks})

    for ids, count in [(range(601, 975), 108), (range(511, 601), 39), (range(1, 11), 7)]:
        assert len(shared(ids).benchmarks["mbpp+"].tasks_by_id) == count
    rest = shared(range(601, 975), plus_ids)
    assert rest.num_documents == 266
    assert rest.benchmarks["mbpp+"].tasks_by_id == ()
    assert rest.benchmarks["mbpp+"].num_documents == 49
