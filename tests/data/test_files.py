"""The table of data files: found, checked, downloaded, and read with errors that name the line."""

import gzip
import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from unmask.data import files
from unmask.data.files import DataFile
from unmask.errors import DownloadError, TaskError, UnmaskError
from unmask.model.progress import Progress

CONTENT = b'{"task_id": "a"}\n'
SHA256 = hashlib.sha256(CONTENT).hexdigest()
SHARED = Path(os.environ.get("UNMASK_DATA") or Path(__file__).parents[3] / "shared" / "data")
Table = Callable[..., DataFile]


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty data folder and an empty cache."""
    (tmp_path / "given").mkdir()
    monkeypatch.setenv("UNMASK_DATA", str(tmp_path / "given"))
    monkeypatch.setenv("UNMASK_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("UNMASK_OFFLINE", raising=False)
    files.check.cache_clear()


@pytest.fixture
def table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Table:
    """A table of one file, `set/a.jsonl`, whose source is a file on this disk."""

    def replace(
        *, source: bytes | None = CONTENT, sha256: str = SHA256, url: str | None = None, how: str = ""
    ) -> DataFile:
        origin = tmp_path / "origin.jsonl"
        if source is not None:
            origin.write_bytes(source)
        place = origin.as_uri() if url is None else url
        row = DataFile(
            path="set/a.jsonl", version="1", licence="MIT", bytes=len(CONTENT), sha256=sha256, url=place, how=how
        )
        monkeypatch.setattr(files, "table", lambda: {row.path: row})
        return row

    return replace


def put(folder: Path, content: bytes = CONTENT) -> Path:
    place = folder / "set" / "a.jsonl"
    place.parent.mkdir(parents=True)
    place.write_bytes(content)
    return place


def failure(call: Callable[[], object], kind: type[UnmaskError] = TaskError) -> str:
    with pytest.raises(kind) as caught:
        call()
    return str(caught.value)


# The table


def test_every_row_has_a_pinned_source_or_says_how_to_get_the_file() -> None:
    assert len(files.table()) == 16
    for row in files.table().values():
        assert bool(row.url) != bool(row.how), row.path
        assert len(row.sha256) == 64
        assert row.licence
        assert not row.url or row.url.startswith("https://")


def test_the_table_is_right_about_the_files_on_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    if not SHARED.is_dir():
        pytest.skip(f"no benchmark data: UNMASK_DATA is not set, and there is no folder {SHARED}")
    monkeypatch.setenv("UNMASK_DATA", str(SHARED))
    for path, row in files.table().items():
        assert files.locate(path, offline=True).stat().st_size == row.bytes


def test_an_unknown_path_is_refused_with_the_nearest() -> None:
    assert "did you mean mbpp/mbpp.jsonl" in failure(lambda: files.locate("mbpp/mbp.jsonl"))


def test_reading_data_imports_neither_torch_nor_numpy() -> None:
    code = "import sys, unmask.evaluate.benchmarks; print(sorted({'torch', 'numpy', 'tokenizers'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


# Found


def test_the_given_folder_comes_before_the_cache(table: Table, tmp_path: Path) -> None:
    table(source=None)
    cached = put(tmp_path / "home" / "data")
    assert files.locate("set/a.jsonl") == cached
    given = put(tmp_path / "given")
    assert files.find("set/a.jsonl") == files.locate("set/a.jsonl") == given


def test_a_folder_that_is_none_is_named(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    table()
    monkeypatch.setenv("UNMASK_DATA", "/nowhere")
    assert "UNMASK_DATA is /nowhere, which is not a folder; set it to" in failure(lambda: files.locate("set/a.jsonl"))


def test_a_file_with_another_hash_is_refused_with_both_hashes(table: Table, tmp_path: Path) -> None:
    table()
    place = put(tmp_path / "given", b"other")
    message = failure(lambda: files.locate("set/a.jsonl"))
    assert f"{place} has sha256 {hashlib.sha256(b'other').hexdigest()} instead of {SHA256}" in message
    assert "delete it to have it downloaded, or point UNMASK_DATA at" in message


def test_a_file_is_hashed_once_a_process(table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table()
    put(tmp_path / "given")
    hashed = []
    honest = files.sha256_of
    monkeypatch.setattr(files, "sha256_of", lambda place: (hashed.append(place), honest(place))[1])
    files.locate("set/a.jsonl")
    files.locate("set/a.jsonl")
    assert len(hashed) == 1


# Downloaded


def test_what_is_missing_is_downloaded_checked_and_kept(table: Table, tmp_path: Path) -> None:
    table()
    seen: list[Progress] = []
    place = files.locate("set/a.jsonl", report=seen.append)
    assert place == tmp_path / "home" / "data" / "set" / "a.jsonl"
    assert place.read_bytes() == CONTENT
    assert seen == [Progress(label="set/a.jsonl", done=len(CONTENT), total=len(CONTENT))]
    (tmp_path / "origin.jsonl").unlink()
    assert files.locate("set/a.jsonl") == place


def test_a_download_with_another_hash_is_not_kept(table: Table, tmp_path: Path) -> None:
    table(source=b"x" * 500_000)
    message = failure(lambda: files.locate("set/a.jsonl"), DownloadError)
    assert f"instead of {SHA256}, so it was not kept: its source has changed" in message
    assert "or set UNMASK_DATA" in message
    assert [path for path in (tmp_path / "home").rglob("*") if path.is_file()] == []


def test_a_failed_download_says_where_to_put_the_file(table: Table, tmp_path: Path) -> None:
    table(source=None)
    message = failure(lambda: files.locate("set/a.jsonl"), DownloadError)
    assert "could not be downloaded" in message
    assert f"put the file at {tmp_path / 'home' / 'data' / 'set' / 'a.jsonl'} by hand" in message


def test_an_interrupted_download_leaves_nothing(table: Table, tmp_path: Path) -> None:
    table()

    def interrupt(progress: Progress) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        files.locate("set/a.jsonl", report=interrupt)
    assert [path for path in (tmp_path / "home").rglob("*") if path.is_file()] == []


def test_offline_downloads_nothing_and_names_the_source(table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    row = table()
    message = failure(lambda: files.locate("set/a.jsonl", offline=True))
    assert "set/a.jsonl is not in " in message
    assert f"and offline was asked for; put {row.url} there, or set UNMASK_DATA to a folder that has it" in message
    monkeypatch.setenv("UNMASK_OFFLINE", "1")
    assert "UNMASK_OFFLINE is set" in failure(lambda: files.locate("set/a.jsonl"))


def test_a_file_without_a_source_says_what_it_is(table: Table) -> None:
    table(url="", how="a list of ids")
    message = failure(lambda: files.locate("set/a.jsonl"))
    assert "cannot be downloaded: it is a list of ids. Put it there, or set UNMASK_DATA" in message


# Read


def written(tmp_path: Path, name: str, content: bytes) -> Path:
    place = tmp_path / name
    place.write_bytes(content)
    return place


def test_json_lines_are_read_packed_or_not_with_their_numbers(tmp_path: Path) -> None:
    text = '\ufeff{"a": 1}\r\n\n  \n{"a": "é"}'.encode()
    plain = written(tmp_path, "a.jsonl", text)
    packed = written(tmp_path, "a.jsonl.gz", gzip.compress(text))
    assert list(files.numbered_records(plain)) == [(1, {"a": 1}), (4, {"a": "é"})]
    assert files.read_jsonl(plain) == files.read_jsonl(packed) == [{"a": 1}, {"a": "é"}]
    assert files.read_json(written(tmp_path, "a.json", json.dumps([1, {"b": [2]}], indent=2).encode())) == [
        1,
        {"b": [2]},
    ]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.jsonl", b'{"a": 1}\n{"a": \n', "a.jsonl, line 2 is not JSON (Expecting value"),
        ("a.jsonl", b'{"a": 1}\n\n[1]\n', "a.jsonl, line 3 holds a list; each line has to be one JSON object"),
        ("a.jsonl", b'{"a": 1}\n"\xff"\n', "a.jsonl, line 2 is not UTF-8"),
        ("a.jsonl", b"[" * 200_000, "a.jsonl, line 1 is not JSON"),
        ("a.jsonl.gz", b'{"a": 1}\n', "a.jsonl.gz cannot be unpacked behind line 0 (Not a gzipped file"),
        ("a.jsonl.gz", gzip.compress(b'{"a": 1}\n' * 9000)[:-50], "it is not gzip, or was cut off; get it again"),
    ],
)
def test_a_file_that_cannot_be_read_names_the_line(tmp_path: Path, name: str, content: bytes, told: str) -> None:
    place = written(tmp_path, name, content)
    assert told in failure(lambda: files.read_jsonl(place))


def test_json_that_is_cut_off_is_named(tmp_path: Path) -> None:
    place = written(tmp_path, "a.json", b'{"a": [1,')
    assert "a.json is not JSON (Expecting value" in failure(lambda: files.read_json(place))


def test_a_folder_in_place_of_a_file_is_named(tmp_path: Path) -> None:
    assert f"{tmp_path} is a folder; give the path of a file in it" in failure(lambda: files.read_jsonl(tmp_path))


def test_a_file_that_does_not_exist_is_named(tmp_path: Path) -> None:
    assert f"there is no file {tmp_path / 'a.jsonl'}; give the path" in failure(
        lambda: files.read_jsonl(tmp_path / "a.jsonl")
    )
