"""Installed packages: the permissive ones, whole and sorted, without tests and without copies of others."""

from collections import Counter
from importlib import metadata
from pathlib import Path

import pytest

from unmask.data import installed
from unmask.data.corpus import Document, read

BSD = "Redistribution and use in source and binary forms, with or without modification, are permitted provided that"


def install(folder: Path, name: str, *stated: str, files: tuple[str, ...] = ("a.py",), text: str = "") -> None:
    """Lay a package out as pip does: its files, METADATA, RECORD, and a licence's text if there is one."""
    module = name.lower().replace("-", "_")
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("\n".join(["Metadata-Version: 2.4", f"Name: {name}", "Version: 1.0", *stated, ""]))
    record = [f"{module}/{file}" for file in files]
    for path in record:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(f"# {path}\n")
    if text:
        (info / "licenses").mkdir()
        (info / "licenses" / "LICENSE").write_text(text)
        record.append(f"{info.name}/licenses/LICENSE")
    (info / "RECORD").write_text("".join(f"{path},,\n" for path in record))


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(installed, "folders", lambda: [str(tmp_path)])
    return tmp_path


def licences(folder: Path, *stated: str, text: str = "") -> tuple[str, ...]:
    install(folder, "one", *stated, text=text)
    (distribution,) = metadata.distributions(path=[str(folder)])
    return installed.licences_of(distribution)


@pytest.mark.parametrize(
    ("stated", "found"),
    [
        (["License-Expression: MIT"], ("MIT",)),
        (["License-Expression: bsd-3-clause AND 0BSD"], ("BSD-3-Clause", "0BSD")),
        (["License-Expression: GPL-3.0-only OR Apache-2.0"], ("Apache-2.0",)),
        (["License-Expression: Apache-2.0 WITH LLVM-exception"], ("Apache-2.0 WITH LLVM-exception",)),
        (["License-Expression: MIT AND MPL-2.0"], ()),
        (["License-Expression: MIT AND (Zlib OR ISC)"], ()),
        (["License-Expression: MPL-2.0", "Classifier: License :: OSI Approved :: MIT License"], ()),
        (["Classifier: License :: OSI Approved :: MIT License", "License: GPL"], ("MIT",)),
        (["Classifier: License :: OSI Approved", "License: ISC"], ("ISC",)),
        (
            [
                "Classifier: License :: OSI Approved :: Apache Software License",
                "Classifier: License :: OSI Approved :: MIT License",
            ],
            ("Apache-2.0", "MIT"),
        ),
        (
            [
                "Classifier: License :: OSI Approved :: MIT License",
                "Classifier: License :: OSI Approved :: GNU General Public License v2 (GPLv2)",
            ],
            (),
        ),
        (["Classifier: License :: OSI Approved :: BSD License", "License: BSD 2-Clause License"], ("BSD-2-Clause",)),
        (["Classifier: License :: OSI Approved :: BSD License"], ()),
        (["License: Apache License, Version 2.0"], ("Apache-2.0",)),
        (["License: MPL-2.0 AND MIT"], ()),
        (["License: Copyright (c) 2020 Somebody. " + "Permission is granted. " * 9], ()),
        ([], ()),
    ],
)
def test_a_licence_is_read_or_left_open(tmp_path: Path, stated: list[str], found: tuple[str, ...]) -> None:
    assert licences(tmp_path, *stated) == found


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (f"{BSD}\nthe following.", ("BSD-2-Clause",)),
        (f"{BSD}\nNeither the name may be used to endorse or\npromote products", ("BSD-3-Clause",)),
        (f"{BSD}\nAll advertising materials must say so; endorse or promote", ()),
        ("Do what you like.", ()),
    ],
)
def test_the_text_says_which_bsd_it_is(tmp_path: Path, text: str, found: tuple[str, ...]) -> None:
    assert licences(tmp_path, "Classifier: License :: OSI Approved :: BSD License", text=text) == found


def test_the_source_gives_files_by_package_and_path_and_counts_the_rest(folder: Path) -> None:
    files = ("b.py", "a.py", "tests/test_a.py", "_vendor/other.py", "data.txt")
    install(folder, "Zebra", "License-Expression: MIT", files=files)
    install(folder, "ape", "License-Expression: Zlib", files=("sub/x.py",))
    install(folder, "gnu", "License-Expression: GPL-3.0-only", files=("x.py", "y.py", "tests/z.py"))
    (folder / "zebra" / "b.py").write_bytes(b"# \xe9\n")
    skipped: Counter[str] = Counter()
    assert list(read("installed", skipped=skipped)) == [
        Document(name="ape/sub/x.py", text="# ape/sub/x.py\n", licences=("Zlib",)),
        Document(name="zebra/a.py", text="# zebra/a.py\n", licences=("MIT",)),
    ]
    assert skipped == {"licence": 2, "not UTF-8": 1}


def test_a_file_that_the_record_names_and_nobody_has_is_passed_over(folder: Path) -> None:
    install(folder, "ape", "License-Expression: MIT", files=("a.py", "b.py"))
    (folder / "ape" / "a.py").unlink()
    assert [document.name for document in read("installed")] == ["ape/b.py"]


def test_this_python_has_some() -> None:
    names = [package.name for package in installed.packages()]
    assert names == sorted(names)
    assert {"pytest", "packaging"} <= set(names)
    assert "hypothesis" not in names
