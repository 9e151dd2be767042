"""Shards: what is written is what is read, and a folder that is not whole is never opened."""

import errno
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask.data.shards import Shards, ShardWriter, fingerprint
from unmask.errors import DataError
from unmask.text.tokenizer import Tokenizer

DOCUMENTS = [[1, 2, 3], [4], [5, 6, 7, 8], [9, 10]]


def write(
    folder: Path, documents: Iterable[Sequence[int]] = DOCUMENTS, *, vocab_size: int = 100, file_bytes: int = 8
) -> Path:
    with ShardWriter(folder, vocab_size=vocab_size, tokenizer="abc", file_bytes=file_bytes) as writer:
        for document in documents:
            writer.add(document, prompt_length=len(document) // 2)
    return folder


@pytest.mark.parametrize("vocab_size", [1 << 16, (1 << 16) + 1])
def test_documents_come_back_as_they_were_written(tmp_path: Path, vocab_size: int) -> None:
    documents = [*DOCUMENTS, [vocab_size - 1, 0]]
    shards = Shards.open(write(tmp_path / "s", documents, vocab_size=vocab_size))
    assert [shards.document(i)[0].tolist() for i in range(shards.num_documents)] == documents
    assert [shards.document(i)[1] for i in range(shards.num_documents)] == [1, 0, 2, 1, 1]
    assert shards.meta.dtype.itemsize == (2 if vocab_size == 1 << 16 else 4)
    assert len(list(shards.folder.glob("tokens-*.bin"))) > 1
    assert sum(path.stat().st_size for path in shards.folder.glob("tokens-*")) == (
        shards.num_tokens * shards.meta.dtype.itemsize
    )
    shards.verify()


@settings(max_examples=20, deadline=None)  # each waits for the disk
@given(
    documents=st.lists(st.lists(st.integers(0, 99), min_size=1, max_size=9), min_size=1, max_size=9),
    file_bytes=st.integers(1, 40),
    cuts=st.tuples(st.integers(0, 90), st.integers(0, 90)),
)
def test_any_span_of_tokens_is_that_of_the_concatenation(
    tmp_path_factory: pytest.TempPathFactory, documents: list[list[int]], file_bytes: int, cuts: tuple[int, int]
) -> None:
    start, stop = sorted(cuts)
    shards = Shards.open(write(tmp_path_factory.mktemp("x") / "s", documents, file_bytes=file_bytes))
    assert shards.tokens(start, stop).tolist() == [token for document in documents for token in document][start:stop]


def test_a_pickled_data_set_maps_the_files_again(tmp_path: Path) -> None:
    folder = write(tmp_path / "s", [list(range(100))] * 100)
    data = pickle.dumps(Shards.open(folder))
    assert len(data) < 1000
    assert pickle.loads(data).document(1)[0].tolist() == list(range(100))


def test_an_interrupted_build_leaves_nothing(tmp_path: Path) -> None:
    def stopped() -> Iterator[list[int]]:
        yield [1, 2]
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(tmp_path / "s", stopped())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no device that is always full")
def test_a_full_disk_is_told_and_nothing_is_left_on_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = Path.open

    def open_full(path: Path, *arguments: Any, **options: Any) -> Any:
        return real(Path("/dev/full") if path.name.startswith("tokens-") else path, *arguments, **options)

    monkeypatch.setattr(Path, "open", open_full)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "s", [[1], [2] * 100_000], file_bytes=1 << 20)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_the_disk_did_not_take_never_appears(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match="No space left"):
        write(tmp_path / "s")
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_writer_left_is_removed_and_what_a_living_one_holds_is_not(tmp_path: Path) -> None:
    code = (
        "import os, signal\nfrom unmask.data.shards import ShardWriter\n"
        f"with ShardWriter({str(tmp_path / 's')!r}, vocab_size=9, tokenizer='abc') as writer:\n"
        "    writer.add([1, 2])\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    (tmp_path / ".other.x.partial").mkdir()
    (left,) = tmp_path.glob(".s.*.partial")
    with ShardWriter(tmp_path / "s", vocab_size=9, tokenizer="abc") as writer:
        assert not left.exists()
        writer.add([1, 2])
        with pytest.raises(KeyboardInterrupt), ShardWriter(tmp_path / "s", vocab_size=9, tokenizer="abc"):
            raise KeyboardInterrupt
        writer.add([3])
    assert Shards.open(tmp_path / "s").num_tokens == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == [".other.x.partial", "s"]


def test_the_folder_appears_when_it_is_whole(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "s", vocab_size=9, tokenizer="abc") as writer:
        writer.add([1, 2])
        assert not (tmp_path / "s").exists()
    assert Shards.open(tmp_path / "s").num_tokens == 2
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


def test_the_meta_says_what_it_was_built_from(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "s", vocab_size=9, tokenizer="abc") as writer:
        writer.add([1, 2])
        writer.note(sources=["a.jsonl"], licences={"MIT": 1}, dropped={"duplicate": 3}, settings={"seed": 7})
    meta = Shards.open(tmp_path / "s").meta
    assert meta == writer.meta
    assert (meta.sources, meta.licences, meta.dropped) == (("a.jsonl",), {"MIT": 1}, {"duplicate": 3})


# What is refused


def test_a_folder_that_is_there_is_not_written_over(tmp_path: Path) -> None:
    write(tmp_path / "s")
    with pytest.raises(DataError, match="s is there already, and shards are never written over; delete it or choose"):
        ShardWriter(tmp_path / "s", vocab_size=9, tokenizer="abc")


def test_an_empty_data_set_says_what_was_dropped(tmp_path: Path) -> None:
    with (
        pytest.raises(DataError, match=r"no documents to write to .*; dropped: licence 12; give sources with text"),
        ShardWriter(tmp_path / "s", vocab_size=9, tokenizer="abc") as writer,
    ):
        writer.note(dropped={"licence": 12})
    assert list(tmp_path.iterdir()) == []


def test_an_id_outside_the_vocabulary_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="holds the id 9, and the vocabulary has ids 0 to 8; give the vocab_size"):
        write(tmp_path / "s", [[1, 9]], vocab_size=9)
    with pytest.raises(DataError, match="holds the id -1, and"):
        write(tmp_path / "t", [[-1, 5]], vocab_size=9)


def test_a_prompt_longer_than_its_document_is_refused(tmp_path: Path) -> None:
    with (
        pytest.raises(DataError, match="a document of 2 tokens with a prompt of 3; a document has at least one token"),
        ShardWriter(tmp_path / "s", vocab_size=9, tokenizer="abc") as writer,
    ):
        writer.add([1, 2], prompt_length=3)


def test_a_folder_without_shards_says_how_to_make_some(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is no folder of shards: it has no meta.json; make one with `unmask data bui"):
        Shards.open(tmp_path)


def _cut(folder: Path, name: str) -> None:
    path = folder / name
    path.write_bytes(path.read_bytes()[:-2])


def test_a_file_that_is_missing_cut_or_changed_is_named(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole")
    for name in ("tokens-00001.bin", "offsets.npy", "prompt_lengths.npy"):
        copy = tmp_path / f"cut-{name}"
        shutil.copytree(whole, copy)
        _cut(copy, name)
        with pytest.raises(DataError, match=f"is damaged: {name} has .* bytes instead of .*; copy the folder again"):
            Shards.open(copy)
        (copy / name).unlink()
        with pytest.raises(DataError, match=f"is damaged: {name} is missing"):
            Shards.open(copy)
    path = whole / "tokens-00001.bin"
    path.write_bytes(bytes(len(path.read_bytes())))
    shards = Shards.open(whole)
    with pytest.raises(DataError, match=r"is damaged: tokens-00001.bin has another sha256 than when it was written"):
        shards.verify()


def test_a_changed_meta_is_refused(tmp_path: Path) -> None:
    folder = write(tmp_path / "s")
    meta = json.loads((folder / "meta.json").read_text())
    for change, message in (
        ({"format": 2}, "has format 2, and this version reads format 1; build the shards again"),
        ({"format": None}, "meta.json states no format"),
        ({"num_tokens": 11}, "its files hold 10 tokens, and meta.json says 11"),
        ({"num_documents": 3}, r"offsets.npy is int64\[5\] instead of 4 numbers"),
        ({"num_documents": 0}, "holds no documents; build it again from sources with text"),
        ({"files": None}, "meta.json lacks something"),
    ):
        (folder / "meta.json").write_text(json.dumps(meta | change))
        with pytest.raises(DataError, match=message):
            Shards.open(folder)
    (folder / "meta.json").write_text("{")
    with pytest.raises(DataError, match=r"meta\.json is no JSON"):
        Shards.open(folder)


def test_a_document_that_is_not_there_is_an_index_error(tmp_path: Path) -> None:
    shards = Shards.open(write(tmp_path / "s"))
    for i in (-1, 4):
        with pytest.raises(IndexError, match=f"document {i} of 4"):
            shards.document(i)


# Tokenizers


def test_shards_of_another_tokenizer_are_refused(tmp_path: Path) -> None:
    shards = Shards.open(write(tmp_path / "s"))
    shards.check_tokenizer("abc")
    with pytest.raises(DataError, match=r"holds ids of the tokenizer abc, and the model's tokenizer is xyz: the same"):
        shards.check_tokenizer("xyz")


def test_the_fingerprint_outlives_saving_and_tells_vocabularies_apart(tmp_path: Path) -> None:
    first, second = Tokenizer.byte_level(), Tokenizer.byte_level(["<|endoftext|>", "<|mask|>"])
    assert fingerprint(first) != fingerprint(second)
    first.save(tmp_path)
    assert fingerprint(Tokenizer.from_folder(tmp_path)) == fingerprint(first)
    assert fingerprint(Tokenizer.byte_level(chat_template="{{ messages }}")) == fingerprint(first)


def test_ids_are_given_as_arrays_that_can_be_changed(tmp_path: Path) -> None:
    shards = Shards.open(write(tmp_path / "s"))
    ids, _ = shards.document(0)
    ids += 1
    assert ids.dtype == np.int64
    assert shards.document(0)[0].tolist() == [1, 2, 3]
