"""`unmask analyze`: from trajectories, or from a model that is run first, to numbers, tables and figures."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from unmask.analyze.ar_ness import global_ar_ness, local_ar_ness
from unmask.analyze.order import order
from unmask.trajectory import Commit, Step, Trajectory, load, save

from checkpoints import write_checkpoint
from command_line import refusal, unmask


def run(places: list[int], *, model: str = "m") -> Trajectory:
    steps = [Step(commits=[Commit(0, place, place, 0.9, 0.1)]) for place in places]
    steps[0].seen = [(place, 0.5, 0.1) for place in sorted(places)]
    pieces = dict(enumerate(["ask: ", *"f(x)"]))
    return Trajectory(
        initial_ids=[0, *[None] * len(places)], steps=steps, model=model, pieces=pieces, num_forwards=len(places)
    )


TASK = {
    "task_id": "toy/0",
    "prompt": "def f(x):\n",
    "entry_point": "f",
    "tests": [{"input": [1], "output": 1}],
    "canonical_solution": "    return x\n",
}


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("UNMASK_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("UNMASK_OFFLINE", "1")
    return tmp_path


def test_json_has_both_measures_by_k() -> None:
    save("a.jsonl", [run([1, 2, 4, 3])])
    outcome = unmask("analyze", "a.jsonl", "--json")
    assert outcome.code == 0
    found = json.loads(outcome.text)
    assert found["local_ar_ness"]["1"] == pytest.approx(local_ar_ness([1, 2, 4, 3]))
    assert found["global_ar_ness"] == {str(k): pytest.approx(global_ar_ness([1, 2, 4, 3], k)) for k in (1, 2, 3, 4)}
    assert found["local_ar_ness"]["9"] is None
    assert found["conventions"]["denominator"] == "T-k"


def test_several_files_are_compared_and_those_of_one_model_also_pooled() -> None:
    save("a.jsonl", [run([1, 2, 3, 4])])
    save("b.jsonl", [run([4, 3, 2, 1])])
    save("c.jsonl", [run([4, 3, 2, 1], model="other")])
    found = json.loads(unmask("analyze", "a.jsonl", "b.jsonl", "--json").text)
    assert [group["local_ar_ness"]["1"] for group in found["groups"]] == [1.0, 0.0]
    assert found["local_ar_ness"]["1"] == 0.5
    mixed = json.loads(unmask("analyze", "a.jsonl", "c.jsonl", "--json").text)
    assert found["differing"] == []
    assert mixed["local_ar_ness"].keys() == found["local_ar_ness"].keys()
    assert {*mixed["local_ar_ness"].values(), *mixed["global_ar_ness"].values()} == {None}
    assert mixed["differing"] == ["model"]
    assert [group["model"] for group in mixed["groups"]] == ["m", "other"]


def test_conventions_are_chosen_and_named() -> None:
    save("a.jsonl", [run([1, 2, 3, 4])])
    found = json.loads(unmask("analyze", "a.jsonl", "--over", "all", "--json").text)
    assert found["local_ar_ness"]["1"] == 0.75
    assert found["conventions"]["denominator"] == "T"
    assert "'sideways'" in refusal("analyze", "a.jsonl", "--ties", "sideways")


def test_figures_are_drawn_for_what_is_there() -> None:
    save("a.jsonl", [run([1, 2, 4, 3]), run([1, 2, 3, 4])])
    outcome = unmask("analyze", "a.jsonl", "--figures", "figs")
    assert outcome.code == 0
    assert {path.name for path in Path("figs").iterdir()} == {
        "ar-ness.svg",
        "order.svg",
        "entropy-sink.svg",
        "syntax.svg",
    }
    assert "figures in figs: ar-ness.svg" in outcome.err
    assert unmask("analyze", "a.jsonl", "--figures", "pngs", "--png", "-q").code == 0
    assert (Path("pngs") / "ar-ness.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "unmask analyze run.jsonl"),
        (("none.jsonl",), "there is no file none.jsonl"),
        (("a.jsonl", "--tasks", "synthetic-test"), "--tasks is for running a model"),
        (("a.jsonl", "-m", "tiny"), "--model is for running a model"),
        (("a.jsonl", "--png"), "give --figures DIR"),
        (("a.jsonl", "--figures", "a.jsonl"), "is a file; give a folder"),
        (("a.jsonl", "--part", "anser"), "answer"),
        (("cut.jsonl",), "the file is cut short or damaged"),
        (("newer.jsonl",), "has version 99"),
        (("empty.jsonl",), "empty.jsonl: nothing was settled in the run"),
        (("a.jsonl", "--figures", "a.jsonl/x"), "--figures a.jsonl/x cannot be made (Not a directory)"),
        (("-m", "tiny", "--tasks", "synthetic-test", "--temperatures", "x"), "--temperatures: 'x' is not a number"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_a_sentence(arguments: tuple[str, ...], words: str) -> None:
    save("a.jsonl", [run([1, 2, 3, 4])])
    text = Path("a.jsonl").read_text()
    Path("cut.jsonl").write_text(text[: len(text) // 2])
    Path("newer.jsonl").write_text(text.replace('"version":1', '"version":99'))
    save("empty.jsonl", [Trajectory(initial_ids=[0, None])])
    assert words in refusal("analyze", *arguments)


def test_a_model_is_run_and_measured_at_each_temperature(place: Path) -> None:
    folder = write_checkpoint(place / "model", "full")
    Path("toy.jsonl").write_text("".join(json.dumps({**TASK, "task_id": f"toy/{i}"}) + "\n" for i in range(3)))
    options = ("--tasks", "toy.jsonl", "-m", folder, "--max-new-tokens", 8, "--dtype", "float32", "-o", "out", "-q")
    outcome = unmask("analyze", *options, "--temperatures", "0.2,1.0", "--part", "all", "--figures", "figs", "--json")
    assert outcome.code == 0, outcome
    found = json.loads(outcome.text)
    assert [group["temperatures"] for group in found["groups"]] == [[0.2], [1.0]]
    assert found["differing"] == ["temperature"]
    means = [group["global_ar_ness"]["1"] for group in found["groups"]]
    assert found["global_ar_ness"]["1"] == pytest.approx(sum(means) / 2)
    assert [cell["name"] for cell in found["evaluations"][0]["cells"]] == ["temperature=0.2", "temperature=1.0"]
    assert (Path("figs") / "pass-at-k.svg").is_file()
    again = unmask("analyze", "out", "--part", "all", "--json")
    assert json.loads(again.text)["groups"] == found["groups"]
    runs = [t for file in sorted(Path("out").rglob("trajectories/*/*.jsonl")) for t in load(file)]
    cold = [t for t in runs if t.settings["temperature"] == 0.2]
    shares = [global_ar_ness(order(t, part="all")) for t in cold]
    assert found["groups"][0]["global_ar_ness"]["1"] == pytest.approx(sum(shares) / len(shares))


def test_cells_of_several_speeds_give_the_speed_quality_figure(place: Path) -> None:
    folder = write_checkpoint(place / "model", "full")
    Path("toy.jsonl").write_text(json.dumps(TASK) + "\n")
    options = ("-m", folder, "--preset", "base", "--max-new-tokens", 8, "--dtype", "float32", "-o", "out", "-q")
    assert unmask("evaluate", "toy.jsonl", *options, "--steps", "2,8", "--trajectories").code == 0
    assert unmask("analyze", "out", "--part", "all", "--figures", "figs").code == 0
    drawn = (Path("figs") / "speed-quality.svg").read_text(encoding="utf-8")
    assert "forwards per answer" in drawn


def test_recorded_runs_are_measured_without_torch(place: Path) -> None:
    save("a.jsonl", [run([1, 2, 3, 4])])
    code = "import sys; from unmask.cli.main import main\ntry: main()\nfinally: assert 'torch' not in sys.modules"
    done = subprocess.run(
        [sys.executable, "-c", code, "analyze", "a.jsonl", "--figures", "figs"],
        capture_output=True,
        text=True,
        env={**os.environ},
    )
    assert done.returncode == 0, done.stderr
    assert "global AR-ness@1" in done.stdout
    assert {path.name for path in Path("figs").iterdir()} >= {"ar-ness.svg", "order.svg"}


def test_a_run_of_one_token_has_its_table_and_the_figures_that_have_numbers() -> None:
    save("a.jsonl", [run([1])])
    outcome = unmask("analyze", "a.jsonl", "--figures", "figs")
    assert outcome.code == 0, outcome
    assert "global AR-ness@1" in outcome.text
    assert "no figure ar-ness: there is nothing to draw" in outcome.err
    assert "order.svg" in {path.name for path in Path("figs").iterdir()}


def test_an_empty_file_among_others_is_left_out_and_told() -> None:
    save("a.jsonl", [run([1, 2, 3])])
    save("empty.jsonl", [Trajectory(initial_ids=[0, None])])
    outcome = unmask("analyze", "a.jsonl", "empty.jsonl", "--json")
    assert "empty.jsonl is left out: nothing was settled in the run" in outcome.err
    assert list(json.loads(outcome.text)["left_out"]) == ["empty.jsonl"]


def test_an_ascii_terminal_gets_ascii() -> None:
    save("a.jsonl", [replace(run([1, 2, 4, 3]), label="t/0"), replace(run([1, 2, 3, 4]), label="t/1")])
    code = "from unmask.cli.main import main; main()"
    env = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    done = subprocess.run([sys.executable, "-c", code, "analyze", "a.jsonl"], capture_output=True, env=env)
    assert done.returncode == 0, done.stderr
    assert b"+-" in done.stdout
