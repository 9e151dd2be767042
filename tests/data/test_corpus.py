"""Sources: every kind gives its documents, in the same order each time, and says what it cannot read."""

import gzip
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from unmask.data import corpus
from unmask.data.corpus import Document, read
from unmask.errors import DataError
from unmask.text.chat import Message

TASK = {"task_id": "Mine/0", "prompt": "def f():\n", "entry_point": "f", "tests": [{"input": [], "output": 1}]}


def lines(path: Path, *records: dict[str, Any]) -> Path:
    text = "".join(json.dumps(record) + "\n" for record in records)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_json_lines_hold_texts_conversations_and_tasks(tmp_path: Path, name: str) -> None:
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    path = lines(
        tmp_path / name,
        {"text": "one", "license": "MIT"},
        {"content": "two", "max_stars_repo_licenses": ["MIT", "BSD-3-Clause"]},
        {"messages": turns},
        {**TASK, "instruction": "Give 1.", "canonical_solution": "    return 1\n"},
        {**TASK, "task_id": "Mine/1", "reference": "def f():\n    return 2\n"},
    )
    assert list(read(path)) == [
        Document(name=f"{path}, line 1", text="one", licences=("MIT",)),
        Document(name=f"{path}, line 2", text="two", licences=("MIT", "BSD-3-Clause")),
        Document(name=f"{path}, line 3", messages=(Message("user", "hi"), Message("assistant", "yes"))),
        Document(
            name=f"{path}, line 4",
            messages=(Message("user", "Give 1."), Message("assistant", "```python\ndef f():\n    return 1\n```")),
        ),
        Document(
            name=f"{path}, line 5",
            messages=(Message("user", "def f():\n"), Message("assistant", "```python\ndef f():\n    return 2\n```")),
        ),
    ]


def test_a_task_without_a_solution_is_named(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", {**TASK, "reference": "def f(): return 1"}, {**TASK, "task_id": "Mine/7"})
    with pytest.raises(DataError, match=r"line 2: the task 'Mine/7' has tests and no solution, .*; add a 'reference'"):
        list(read(path))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"prompt": "def f():", "reference": ["x"]},
            "the task 'a/1' has a list as its 'reference'; it has to be a text",
        ),
        ({"reference": "x = 1"}, "the task 'a/1' has neither an 'instruction' nor a 'prompt', so nothing is asked"),
    ],
)
def test_a_task_that_makes_no_pair_is_named(tmp_path: Path, fields: dict[str, object], message: str) -> None:
    path = lines(tmp_path / "a.jsonl", {"task_id": "a/1", "entry_point": "f", **fields})
    with pytest.raises(DataError) as caught:
        list(read(path))
    assert str(caught.value).startswith(f"{path}, line 1: {message}")


def test_a_record_without_a_text_names_its_fields(tmp_path: Path) -> None:
    path = lines(tmp_path / "a.jsonl", {"code": "x", "id": 3})
    with pytest.raises(
        DataError, match=r"line 1 has the fields code, id; a document has messages, or a text in one of"
    ):
        list(read(path))


def test_a_folder_gives_its_python_files_by_path(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "x.py").write_bytes(b"\xef\xbb\xbfx = 1\r\n")
    (tmp_path / "a.py").write_text("y = 'é'\n")
    (tmp_path / "c.txt").write_text("no")
    (tmp_path / "latin.py").write_bytes(b"# \xe9\n")
    skipped: Counter[str] = Counter()
    assert [(found.name, found.text) for found in read(tmp_path, skipped=skipped)] == [
        ("a.py", "y = 'é'\n"),
        ("b/x.py", "x = 1\n"),
    ]
    assert skipped == {"not UTF-8": 1}


def test_the_standard_library_comes_without_its_tests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert (corpus.standard_library() / "dataclasses.py").is_file()
    for name in ("heapq.py", "test/test_heapq.py", "site-packages/numpy.py", "json/tool.py", "idlelib/run.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("pass\n")
    monkeypatch.setattr(corpus, "standard_library", lambda: tmp_path)
    found = list(read("stdlib"))
    assert [document.name for document in found] == ["heapq.py", "json/tool.py"]
    assert {document.licences for document in found} == {("PSF-2.0",)}


def test_a_text_file_is_one_document(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text("one\n\ntwo\n")
    assert [document.text for document in read(path)] == ["one\n\ntwo\n"]
    path.write_bytes(b"\xe9")
    with pytest.raises(DataError, match=r"a\.md is not UTF-8 .*; convert the file to UTF-8"):
        list(read(path))


@pytest.mark.parametrize(
    ("given", "wanted", "split"),
    [
        ("hf:owner/name", ("owner/name",), "train"),
        ("hf:owner/name:test", ("owner/name",), "test"),
        ("hf:owner/name/config", ("owner/name", "config"), "train"),
        ("hf:owner/name/config:test", ("owner/name", "config"), "test"),
        ("hf:name", ("name",), "train"),
    ],
)
def test_a_data_set_of_the_hub_is_streamed(
    monkeypatch: pytest.MonkeyPatch, given: str, wanted: tuple[str, ...], split: str
) -> None:
    asked: list[tuple[object, ...]] = []
    taken = []

    def rows() -> Iterator[dict[str, str]]:
        for number in range(1000):
            taken.append(number)
            yield {"content": f"x = {number}", "license": "MIT"}

    def load_dataset(*name: str, split: str, streaming: bool) -> Iterator[dict[str, str]]:
        asked.append((name, split, streaming))
        return rows()

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert next(read(given)) == Document(name=f"{given}, row 1", text="x = 0", licences=("MIT",))
    assert asked == [(wanted, split, True)]
    assert taken == [0]


def test_records_of_others_that_hold_nothing_are_counted_and_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    ask, answer = {"role": "user", "content": "Add."}, {"role": "assistant", "content": "a + b"}
    rows: list[dict[str, Any]] = [
        {"text": None},
        {"text": "kept"},
        {"messages": [ask, {"role": "assistant", "content": " "}]},
        {"messages": [answer]},
        {"messages": [ask]},
        {"messages": None},
        {"messages": [ask, answer]},
        {"task_id": "a/1", "entry_point": "f", "prompt": "Add."},
        {"text": None, "content": "kept too"},
    ]
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=lambda *_, **__: iter(rows)))
    skipped: Counter[str] = Counter()
    kept = list(read("hf:a/b", skipped=skipped))
    assert [document.name for document in kept] == [f"hf:a/b, row {number}" for number in (2, 7, 9)]
    assert [document.contents[-1] for document in kept] == ["kept", "a + b", "kept too"]
    assert skipped == {"no text": 1, "no answer": 5}


def test_records_of_others_with_other_fields_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=lambda *_, **__: iter([{"code": "x"}])))
    with pytest.raises(DataError, match="hf:a/b, row 1 has the fields code; a document has messages, or a text in"):
        list(read("hf:a/b"))


def test_a_stream_that_breaks_off_says_how_far_it_came(monkeypatch: pytest.MonkeyPatch) -> None:
    class HubError(Exception):
        pass

    def rows(*_: object, **__: object) -> Iterator[dict[str, str]]:
        for number in range(1200):
            yield {"text": f"x = {number}"}
        raise HubError("connection reset")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=rows))
    with pytest.raises(DataError) as caught:
        list(read("hf:a/b"))
    assert "hf:a/b broke off after 1,200 documents (HubError: connection reset); nothing of it is kept" in str(
        caught.value
    )
    assert "start again when the network is back" in str(caught.value)


def test_a_data_set_that_the_hub_does_not_have_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def load_dataset(name: str, **_: object) -> None:
        raise FileNotFoundError(f"no data set {name}")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(
        DataError, match=r"hf:a/b cannot be opened \(no data set a/b\); check its name, its configuration"
    ):
        list(read("hf:a/b"))


def test_a_package_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("datasets", "pyarrow", "pyarrow.parquet"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(
        DataError, match=r"hf:a/b is a data set of .*, and reading it needs the package datasets: pip in"
    ):
        list(read("hf:a/b"))
    (tmp_path / "a.parquet").write_bytes(b"")
    with pytest.raises(DataError, match=r"a\.parquet is a parquet file, and reading it needs .* pip install pyarrow"):
        list(read(tmp_path / "a.parquet"))


def test_parquet_rows_are_documents(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="the extra `train` is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    turns = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]
    parquet.write_table(pyarrow.table({"text": ["a", "b"], "license": ["MIT", None]}), tmp_path / "a.parquet")
    parquet.write_table(pyarrow.table({"messages": [turns]}), tmp_path / "b.parquet")
    assert [(d.text, d.licences) for d in read(tmp_path / "a.parquet")] == [("a", ("MIT",)), ("b", ())]
    assert [d.messages[1].content for d in read(tmp_path / "b.parquet")] == ["yes"]
    parquet.write_table(pyarrow.table({"text": ["a", None, "b"]}), tmp_path / "d.parquet")
    skipped: Counter[str] = Counter()
    assert [d.name for d in read(tmp_path / "d.parquet", skipped=skipped)] == [
        f"{tmp_path / 'd.parquet'}, row {number}" for number in (1, 3)
    ]
    assert skipped == {"no text": 1}
    (tmp_path / "c.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"c\.parquet cannot be read as parquet .*; get the file again"):
        list(read(tmp_path / "c.parquet"))


def test_a_parquet_file_that_is_damaged_far_in_is_named(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="the extra `train` is not installed")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"text": [f"text {i}" for i in range(2000)]}), path, row_group_size=500)
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2] + b"\xff" * 2000 + whole[len(whole) // 2 + 2000 :])
    documents = read(path)
    assert next(documents).text == "text 0"
    with pytest.raises(DataError, match=r"a\.parquet cannot be read as parquet .*; get the file again"):
        list(documents)


def test_a_source_that_is_not_there_or_not_known_says_what_is(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match="there is no source nowhere; give a file, a folder of Python files, stdlib, installed, or"
    ):
        read("nowhere")
    (tmp_path / "a.docx").write_bytes(b"")
    with pytest.raises(DataError, match=r"a\.docx: documents cannot be read from such a file; known are \.jsonl, "):
        read(tmp_path / "a.docx")
