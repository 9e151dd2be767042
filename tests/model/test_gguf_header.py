"""The header of a GGUF file: what is read, and what is refused."""

import struct
from pathlib import Path

import pytest
from gguf import GGUFWriter

from unmask.errors import CheckpointError
from unmask.model.gguf import GGUFFile


def whole_file(path: Path) -> bytes:
    """A file with metadata of several kinds and no tensors."""
    writer = GGUFWriter(path, "qwen2")
    writer.add_array("tokenizer.ggml.tokens", [f"token {number}" for number in range(300)])
    writer.add_array("x.floats", [0.5, -2.0])
    writer.add_string("x.word", "é")
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    return path.read_bytes()


def test_a_nested_array_is_read(tmp_path: Path) -> None:
    key = b"x.nested"
    inner = struct.pack("<IQ2i", 5, 2, 1, -1) + struct.pack("<IQ", 5, 0)
    body = struct.pack("<Q", len(key)) + key + struct.pack("<IIQ", 9, 9, 2) + inner
    (tmp_path / "nested.gguf").write_bytes(struct.pack("<4sIQQ", b"GGUF", 3, 0, 1) + body)
    assert GGUFFile(tmp_path / "nested.gguf").metadata == {"x.nested": [[1, -1], []]}


@pytest.mark.parametrize("share", [0.0, 0.001, 0.3, 0.6, 0.99])
def test_a_cut_off_file_is_refused(tmp_path: Path, share: float) -> None:
    whole = whole_file(tmp_path / "whole.gguf")
    path = tmp_path / "part.gguf"
    path.write_bytes(whole[: int(len(whole.rstrip(b"\0")) * share)])
    with pytest.raises(CheckpointError) as caught:
        GGUFFile(path)
    assert "part.gguf" in str(caught.value)
    assert "download it again" in str(caught.value)


BROKEN = {
    "magic": (b"GGML" + struct.pack("<IQQ", 3, 0, 0), "does not begin with the letters GGUF"),
    "version": (b"GGUF" + struct.pack("<IQQ", 1, 0, 0), "GGUF version 1; versions 2 and 3 are read"),
    "long string": (b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 2**62), ""),
    "long array": (b"GGUF" + struct.pack("<IQQQcIIQ", 3, 0, 1, 1, b"k", 9, 4, 2**62), ""),
    "type": (b"GGUF" + struct.pack("<IQQQcIQ", 3, 0, 1, 1, b"k", 77, 0), ""),
    "utf-8": (b"GGUF" + struct.pack("<IQQQcIQc", 3, 0, 1, 1, b"k", 8, 1, b"\xff"), ""),
}


@pytest.mark.parametrize(("data", "reason"), BROKEN.values(), ids=BROKEN)
def test_a_damaged_file_is_refused_with_the_reason(tmp_path: Path, data: bytes, reason: str) -> None:
    (tmp_path / "bad.gguf").write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        GGUFFile(tmp_path / "bad.gguf")
    assert (reason or "damaged inside its header; download it again") in str(caught.value)
