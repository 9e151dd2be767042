"""`unmask reproduce` from a checkpoint to the page, taken up again, planned, and refused."""

import json
import shlex
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from unmask.analyze.findings import FINDINGS
from unmask.cli import reproduction
from unmask.decode.run import Run
from unmask.sandbox import executor as sandbox
from unmask.sandbox.executor import Job
from unmask.sandbox.verdict import Verdict

from checkpoints import write_checkpoint
from command_line import Outcome, refusal, unmask

EXPERIMENTS = (
    "temperature",
    "order",
    "content",
    "steps",
    "after-temperature",
    "after-steps",
    "stage-adapt",
    "stage-mid",
)


class FakeExecutor:
    """Passes every program that holds an `e`."""

    name, guarantees, interpreter = "fake", ("nothing runs",), "Python 3.11.7"

    def judge(self, jobs: Iterable[Job]) -> Iterator[Verdict]:
        for job in jobs:
            yield Verdict(status="pass" if "e" in job.code.split("\n")[-1] else "fail")

    def close(self) -> None:
        pass


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for variable, value in {"UNMASK_OFFLINE": "1", "UNMASK_HOME": tmp_path / "home", "HF_HOME": tmp_path}.items():
        monkeypatch.setenv(variable, str(value))
    monkeypatch.setenv("NO_COLOR", "1")
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(sandbox, "open_executor", lambda *_, **__: FakeExecutor())
    monkeypatch.setattr(reproduction, "SPREAD_DRAWS", 3)
    rows = [
        {
            "task_id": f"toy/{i}",
            "prompt": f"def f(x):\n    # {'.' * i}\n",
            "entry_point": "f",
            "tests": [{"input": [1], "output": 1}],
            "canonical_solution": "    return x\n",
        }
        for i in range(3)
    ]
    Path("toy.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    place = tmp_path_factory.mktemp("checkpoints")
    for stage in ("adapt", "mid"):
        write_checkpoint(place / "stages" / stage / "final", "full", seed=2 + len(stage))
    return {
        "model": write_checkpoint(place / "model", "full"),
        "after": write_checkpoint(place / "after", "full", seed=1),
        "stages": place / "stages",
    }


def run(folders: dict[str, Path], *more: object, whole: bool = True, code: int = 0) -> Outcome:
    given = ["--model", folders["model"], "--tasks", "toy.jsonl", "--limit", 2, "-n", 2, "--max-new-tokens", 8]
    if whole:
        given += ["--after", folders["after"], "--stages", folders["stages"]]
    outcome = unmask("reproduce", *given, "--temperatures", "0.2,1.0", "--dtype", "float32", "-o", "out", *more)
    assert outcome.code == code, outcome
    return outcome


def test_one_command_measures_every_finding_and_draws_nothing_twice(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    outcome = run(folders)
    assert "8 of 8: stage-mid, 2 answers" in outcome.err
    assert "the page is docs/reproduction-model.md" in outcome.err
    page = Path("docs/reproduction-model.md").read_text(encoding="utf-8")
    for finding in FINDINGS:
        assert f"| [{finding.name}](#{finding.name})" in page
        assert finding.name in outcome.text
    assert f"| `{folders['after']}` | after reinforcement learning | " in page
    assert not list(Path("docs").glob(".*"))

    monkeypatch.setattr(Run, "_record", lambda *_: pytest.fail("an answer was drawn again"))
    monkeypatch.setattr(reproduction, "_scattered", lambda *_: pytest.fail("an answer was scored again"))
    record = json.loads(run(folders, "--json").text)
    assert Path("docs/reproduction-model.md").read_text(encoding="utf-8") == page
    found = {one["name"]: one for one in record["findings"]}
    assert {one["verdict"] for one in found.values()} == {"undecided", "not measured"}  # of two tasks nothing is known
    assert [name for name, one in found.items() if one["verdict"] == "not measured"] == ["code-and-math"]
    assert record["tasks"] == "toy, the first 2 of it"
    assert "Only 2 tasks have what is compared, and at least 6 are needed" in page
    assert "pass@2" in found["pass-at-10"]["notes"][0]

    lines = {line for one in found.values() for line in one["commands"]}
    assert all(line in page for line in lines)
    evaluations = [shlex.split(line) for line in lines if line.startswith("unmask evaluate")]
    assert {Path(words[-1]).name for words in evaluations} == set(EXPERIMENTS)
    for words in evaluations:  # each goes on with the same folder, and finds it whole
        if Path(words[-1]).name in ("temperature", "order", "steps", "stage-adapt"):
            assert unmask(*words[1:], "--quiet").code == 0, words
    assert not [line for line in lines if "temperature-local" in line and ("--after" in line or "--stages" in line)]
    (alone,) = [line for line in lines if "--only temperature-local" in line]
    single = json.loads(unmask(*shlex.split(alone)[1:], "--json", "-q").text)
    assert single["findings"] == [found["temperature-local"]]


def test_figures_are_drawn_and_linked_from_the_page(folders: dict[str, Path]) -> None:
    run(folders, "--only", "temperature-local", "--figures", "docs/figures", "--document", "docs/p.md", whole=False)
    assert "![temperature: ar-ness](figures/temperature/ar-ness.svg)" in Path("docs/p.md").read_text(encoding="utf-8")
    assert Path("docs/figures/temperature/ar-ness.svg").is_file()


def test_ctrl_c_half_way_resumes(folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    only = ("--only", "temperature-local,order-alone", "--json")
    whole = run(folders, *only, whole=False).text
    shutil.rmtree("out")
    record, count = Run._record, [0]

    def stop(self: Run, event: Any) -> None:
        count[0] += 1
        if count[0] > 20:  # in the second experiment
            raise KeyboardInterrupt
        record(self, event)

    with monkeypatch.context() as patched:
        patched.setattr(Run, "_record", stop)
        outcome = run(folders, *only, whole=False, code=130)
    assert "interrupted; " in outcome.err
    assert outcome.out == b""
    assert run(folders, *only, whole=False).text == whole
    assert not Path("docs").exists()


def test_scoring_goes_on_after_the_answers_that_are_kept(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    only = ("--only", "coupled-masks", "--json")
    whole = run(folders, *only, whole=False).text
    rows = Path("out/spread/spread.jsonl")
    lines = rows.read_text().splitlines(keepends=True)
    rows.write_text(lines[0] + lines[1][:9])
    scored: list[str] = []
    scattered = reproduction._scattered

    def noted(answers: Any, asked: Any) -> Iterator[Any]:
        scored.extend(answers)
        return scattered(answers, asked)

    monkeypatch.setattr(reproduction, "_scattered", noted)
    assert run(folders, *only, whole=False).text == whole
    assert scored == [json.loads(lines[1])["task_id"]]
    assert rows.read_text() == "".join(lines)


def test_what_is_missing_is_not_measured_and_the_row_says_what_would(folders: dict[str, Path]) -> None:
    outcome = run(folders, "--only", "rl-order,stages,code-and-math", "--json", whole=False)
    found = {one["name"]: one for one in json.loads(outcome.text)["findings"]}
    assert {one["verdict"] for one in found.values()} == {"not measured"}
    assert f"unmask reproduce --model {folders['model']} --after FOLDER" in found["rl-order"]["why"]
    assert "--stages runs/tiny" in found["stages"]["why"]
    assert not any(one["commands"] for one in found.values())
    assert not Path("out").exists()  # half of what a finding needs is not run


def test_a_plan_runs_nothing(folders: dict[str, Path]) -> None:
    outcome = run(folders, "--plan", "--seconds-per-answer", 3600)
    assert not Path("out").exists()
    assert "as given" in outcome.text
    record = json.loads(run(folders, "--plan", "--seconds-per-answer", 10, "--json").text)
    found = {one["experiment"]: one for one in record["experiments"]}
    assert set(found) == {*EXPERIMENTS, "spread"}
    assert (found["temperature"]["answers"], found["temperature"]["seconds"]) == (8, 80)
    assert found["steps"]["seconds"] == pytest.approx(2 * 10 * (1 + 1 / 2 + 1 / 4))
    assert "coupled-masks" in found["temperature"]["serves"]
    served = {name for one in found.values() for name in one["serves"]}
    assert served == {finding.name for finding in FINDINGS if finding.needs}


def test_tiny_is_compared_with_its_trained_self_where_no_other_is_named() -> None:
    planned = json.loads(unmask("reproduce", "--plan", "--seconds-per-answer", 1, "--json").text)
    assert [one["experiment"] for one in planned["experiments"]] == [*EXPERIMENTS[:6], "spread"]
    after = reproduction.Asked(after="tiny-cpgrpo")
    (found,) = [one for one in reproduction.experiments(after, FINDINGS) if one.name == "after-steps"]
    assert "--model tiny-cpgrpo" in reproduction.command(found, after)


def test_each_model_has_a_folder_and_a_page_of_its_own() -> None:
    places = {
        "tiny": ("evaluations/reproduction", "docs/reproduction.md"),
        "some/Coder-7B": ("evaluations/reproduction-Coder-7B", "docs/reproduction-Coder-7B.md"),
        "runs/tiny/sft/final": ("evaluations/reproduction-tiny-sft", "docs/reproduction-tiny-sft.md"),
    }
    for model, found in places.items():
        assert (str(reproduction.usual_folder(model)), str(reproduction.usual_page(model))) == found
        assert str(reproduction.Asked(model=model).folder) == found[0]


def test_a_plan_measures_the_rate_where_none_is_given(folders: dict[str, Path]) -> None:
    outcome = run(folders, "--plan", "--only", "temperature-local", whole=False)
    assert "(3 answers drawn for it); nothing was run" in outcome.text
    assert not Path("out").exists()
    run(folders, "--only", "temperature-local", "-q", whole=False)
    again = run(folders, "--plan", "--only", "temperature-local", whole=False)
    assert "(8 answers that are kept)" in again.text

    samples = Path("out/temperature/samples.jsonl")
    with samples.open("a", encoding="utf-8") as file:
        file.write('{"unmask"')  # a run is writing the next one
    before = samples.read_bytes()
    beside = run(folders, "--plan", "--only", "temperature-local", whole=False)
    assert "(8 answers that are kept)" in beside.text
    assert samples.read_bytes() == before


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--only", "entropy-sinc"), "'entropy-sinc' is no finding; did you mean entropy-sink?"),
        (("--stages", "."), "--stages . holds no stage of diffusion training (adapt, mid, sft, sft-2"),
        (("--temperatures", "0.2"), "give at least two different ones above 0"),
        (("--temperatures", "0,1"), "give at least two different ones above 0"),
        (("--temperatures", "0.2,hot"), "'hot' is not a number"),
        (("-n", 0), "-n 0 is not a count"),
        (("--limit", 0), "--limit 0 is not a count"),
        (("--max-new-tokens", 0), "--max-new-tokens 0 is not a count"),
        (("--document", "."), "--document . is a folder; give a file in a folder that exists"),
        (("--figures", "toy.jsonl"), "--figures toy.jsonl is a file; give a folder"),
        (("--seconds-per-answer", 1), "--seconds-per-answer is for --plan"),
        (("--plan", "--seconds-per-answer", 0), "--seconds-per-answer 0 is no time"),
        (("--model", "some/model"), "some/model does not say how long its answers may be"),
    ],
)
def test_what_cannot_be_is_refused_at_once(options: tuple[object, ...], said: str) -> None:
    assert said in refusal("reproduce", *options)


def test_other_weights_in_the_same_folder_are_refused(folders: dict[str, Path]) -> None:
    only = ("--only", "temperature-local")
    run(folders, *only, whole=False)
    outcome = run({**folders, "model": folders["after"]}, *only, whole=False, code=2)
    assert "out/temperature holds a run of another kind" in outcome.err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--tasks", "synthetic-tset"), "synthetic-test"),
        (("--model", "tony"), "not a model of the table"),
        (("--after", "tiny-cpgpro"), "'tiny-cpgpro' is not a model of the table"),
        (("--after", "tiny-cpgpro", "--plan"), "did you mean tiny"),
        (("--temperatures", "warm,1"), "--temperatures: 'warm' is not a number"),
        (("--document", "file/page.md"), "--document file/page.md cannot be written"),
        (("--figures", "file/figures"), "--figures file/figures cannot be made"),
    ],
)
def test_what_would_fail_in_the_end_is_refused_in_the_beginning(options: tuple[str, ...], words: str) -> None:
    Path("file").write_text("")
    assert words in refusal("reproduce", *options)
    assert not Path("evaluations").exists()
