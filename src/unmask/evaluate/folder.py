"""The folder of a run: `run.json` says what was asked, and only a run that asks the same goes on in it.

evaluations/humaneval-diffucoder-7b-instruct-1f9ac3d2/
    run.json        the protocol: everything that a sample depends on
    samples.jsonl   one line per sample, written as each batch ends
    result.json     the result
    report.html     the same to look at
    trajectories/   where they were asked for: a folder per cell, a file per batch, written before the batch's samples
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath
from typing import Any

from unmask.analyze.groups import TRAJECTORIES, path_name
from unmask.atomic import beside
from unmask.errors import SettingsError, TaskError, TrajectoryError
from unmask.evaluate.samples import Sample
from unmask.trajectory import Trajectory, load, save

RUN, SAMPLES, REPORT = "run.json", "samples.jsonl", "report.html"
NOTED = "noted"
"""The part of a protocol that is written down and not compared: it differs between equal runs."""

_SLICES, _SLICE_BYTES = 64, 4096


def default_folder(protocol: Mapping[str, Any]) -> Path:
    """`evaluations/<benchmark>-<model>-<hash>`, the same for the same protocol."""
    compared = dict(_flat(protocol))
    digest = hashlib.blake2b(json.dumps(compared, sort_keys=True).encode(), digest_size=4).hexdigest()
    names = [path_name(PurePath(str(protocol[name])).name) for name in ("benchmark", "model")]
    return Path("evaluations") / "-".join([*names, digest])


def check_place(folder: Path) -> None:
    """Raise SettingsError where a file is in the way."""
    if folder.exists() and not folder.is_dir():
        raise SettingsError(f"--output {folder} is a file; give a folder, which is made where there is none")


def enter(folder: Path, protocol: Mapping[str, Any]) -> dict[str, Any]:
    """Make the folder, or make sure that it holds a run of the same protocol; whoever calls holds its lock.

    Returns what `run.json` says: the same protocol, with what was noted when the run began. Raises SettingsError,
    TaskError.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / RUN
    if not path.exists():
        if (folder / SAMPLES).exists():
            raise SettingsError(
                f"--output {folder} holds {SAMPLES} but no {RUN} to say what they are; give another folder"
            )
        with beside(path) as part:
            part.write_text(json.dumps(protocol, indent=1) + "\n", encoding="utf-8")
        return dict(protocol)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        recorded = dict(_flat(record))
    except (ValueError, AttributeError) as error:
        raise TaskError(f"{path} is damaged ({error}); give another --output, or delete the folder") from None
    asked = dict(_flat(json.loads(json.dumps(protocol))))
    differing = [name for name in {**recorded, **asked} if recorded.get(name) != asked.get(name)]
    if differing:
        shown = "; ".join(f"{name} ({recorded.get(name)} there, {asked.get(name)} here)" for name in differing[:5])
        more = f"; and {len(differing) - 5} more" if len(differing) > 5 else ""
        raise SettingsError(
            f"{folder} holds a run of another kind, which differs in {shown}{more}; give another --output, or the same "
            "settings to go on with it"
        )
    return dict(record)


def read_protocol(folder: Path) -> dict[str, Any] | None:
    """What `run.json` of a folder says; None where there is none that can be read."""
    try:
        record = json.loads((folder / RUN).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None


def keep_trajectories(folder: Path, cell: str, first: int, trajectories: Sequence[Trajectory]) -> None:
    """Write what samples of a cell did, in a file named by the running number of the first of them.

    Numbers do not depend on the batch size, so no file of another batch is overwritten. Where the file is there and is
    of other samples (`drop_unfinished` saw to that), they stay in it. Raises TrajectoryError when the disk is full.
    """
    place = folder / TRAJECTORIES / path_name(cell)
    try:
        place.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise TrajectoryError(
            f"could not make the folder {place} for trajectories ({error.strerror}); make room, or give another "
            "--output"
        ) from error
    path = place / f"{first:06d}.jsonl"
    before = load(path) if path.exists() else []
    save(path, [*before, *trajectories])


def drop_unfinished(folder: Path, samples: Iterable[Sample]) -> None:
    """Drop the trajectories of all but these samples: what a kill left of a batch whose samples were not written.

    Those samples are drawn again, maybe in batches of another size. Raises TrajectoryError for a damaged file.
    """
    finished: dict[str, set[tuple[str, int]]] = {}
    for sample in samples:
        if sample.seed is not None:  # as every sample that was drawn here has
            finished.setdefault(path_name(sample.cell), set()).add((sample.task_id, sample.seed))
    for path in sorted((folder / TRAJECTORIES).glob("*/*.jsonl")):
        kept = finished.get(path.parent.name, set())
        lines = path.read_text(encoding="utf-8").splitlines()
        if all(_named(line, path) & kept for line in lines):
            continue
        left = [t for t in load(path) if {(t.label, t.sample), (t.label, t.seed)} & kept]
        if left:
            save(path, left)
        else:
            path.unlink()


def _named(line: str, path: Path) -> set[tuple[str, int]]:
    """What a trajectory may be found by: a sample's seed names a row of a batch, and the whole run of an infilling."""
    try:
        record = json.loads(line)
        return {(record["label"], record["sample"]), (record["label"], record["seed"])}
    except (ValueError, KeyError, TypeError) as error:
        raise TrajectoryError(f"{path} is damaged ({error}); give another --output, or delete the folder") from None


def fingerprint(path: Path) -> str:
    """A digest of a checkpoint's files from their names, sizes and a few slices of each.

    Training overwrites checkpoints, and samples of the old weights must not pass for samples of the new ones. Equal
    copies have equal fingerprints, and it reads a few MB at most.
    """
    digest = hashlib.blake2b(digest_size=16)
    for file in sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]:
        size = file.stat().st_size
        digest.update(f"{file.name if path.is_dir() else ''} {size}\n".encode())
        with file.open("rb") as data:
            for offset in _offsets(size):
                data.seek(offset)
                digest.update(data.read(_SLICE_BYTES))
    return digest.hexdigest()


def _offsets(size: int) -> list[int]:
    """Where the slices begin: all of a small file; evenly spread over a large one, first and last bytes included."""
    if size <= _SLICES * _SLICE_BYTES:
        return list(range(0, size, _SLICE_BYTES))
    return [index * (size - _SLICE_BYTES) // (_SLICES - 1) for index in range(_SLICES)]


def _flat(record: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """What is compared, each value by its path."""
    for name, value in record.items():
        if name == NOTED:
            continue
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value
