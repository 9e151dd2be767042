"""`unmask data`: what goes to stdout and what to stderr; the data is small and lies in a folder of the test's."""

import hashlib
import io
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from unmask.cli import data as cli
from unmask.cli import data_terminal
from unmask.data import corpus, files
from unmask.data.files import DataFile
from unmask.data.jsonl import read_tasks
from unmask.data.shards import Shards
from unmask.data.synthetic import write
from unmask.data.task import Task
from unmask.errors import SettingsError, TaskError, UnknownModelError
from unmask.evaluate import benchmarks, environment
from unmask.evaluate.environment import Environment
from unmask.evaluate.result import CellResult, Result, save_result
from unmask.evaluate.score import Outcome
from unmask.model import hub
from unmask.model.hub import Resolved
from unmask.text.tokenizer import Tokenizer

from command_line import refusal

runner = CliRunner()

RIGHT = b'{"task_id": "HumanEval/0"}\n'


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data folder with one right file, one wrong file, and one that is absent."""
    place = tmp_path / "data"
    place.mkdir()
    (place / "right.jsonl").write_bytes(RIGHT)
    (place / "wrong.jsonl").write_bytes(b"other")
    rows = [
        DataFile(path=f"{name}.jsonl", version="v1", licence="MIT", bytes=27, sha256=hashlib.sha256(RIGHT).hexdigest())
        for name in ("right", "wrong", "absent")
    ]
    monkeypatch.setattr(files, "table", lambda: {row.path: row for row in rows})
    monkeypatch.setenv("UNMASK_DATA", str(place))
    monkeypatch.setenv("UNMASK_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("UNMASK_OFFLINE", "1")
    return place


def run(*arguments: object) -> tuple[str, str]:
    done = runner.invoke(cli.app, [str(argument) for argument in arguments])
    if done.exception is not None:
        raise done.exception
    return done.stdout, done.stderr


# list


def test_list_says_of_each_file_whether_it_is_here_and_the_right_one(folder: Path) -> None:
    out, err = run("list")
    assert out.splitlines() == [
        f"right.jsonl\tv1\tMIT\tok\t{folder}/right.jsonl",
        f"wrong.jsonl\tv1\tMIT\twrong\t{folder}/wrong.jsonl",
        "absent.jsonl\tv1\tMIT\tabsent\t-",
    ]
    assert err == ""


def test_list_as_json_has_the_hashes(folder: Path) -> None:
    records: list[dict[str, Any]] = json.loads(run("list", "--json")[0])
    assert [record["state"] for record in records] == ["ok", "wrong", "absent"]
    assert records[0]["sha256"] == hashlib.sha256(RIGHT).hexdigest()
    assert records[2]["place"] is None


def test_a_table_on_a_terminal_prints_brackets_as_they_are(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    monkeypatch.setenv("NO_COLOR", "1")
    data_terminal.print_table(["file", "path"], [["a.jsonl", "/data/[red]/a.jsonl"]])
    assert capsys.readouterr().out.split() == ["file", "path", "a.jsonl", "/data/[red]/a.jsonl"]


# fetch


def test_fetch_prints_the_paths_of_what_a_benchmark_needs(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str | None]] = []

    def needed(name: str, *, version: str | None = None) -> tuple[str, ...]:
        asked.append((name, version))
        return ("right.jsonl",)

    monkeypatch.setattr(benchmarks, "needed_files", needed)
    assert run("fetch", "humaneval+", "--version", "v1")[0] == f"{folder}/right.jsonl\n"
    assert json.loads(run("fetch", "humaneval+", "--json")[0]) == {"right.jsonl": f"{folder}/right.jsonl"}
    assert asked == [("humaneval+", "v1"), ("humaneval+", None)]


def test_fetch_of_what_is_generated_says_that_it_needs_nothing() -> None:
    assert run("fetch", "synthetic-test") == ("", "synthetic-test needs no data: its tasks are generated\n")


def test_fetch_of_an_unknown_benchmark_names_the_nearest() -> None:
    with pytest.raises(TaskError, match=r"'humanevil' is not a benchmark; did you mean humaneval"):
        run("fetch", "humanevil")


# setup


def made(*, missing: tuple[str, ...] = ()) -> Environment:
    place = Path("/somewhere")
    return Environment(
        name="bigcodebench",
        python=place / "bin/python3.10",
        prefix=place,
        site_packages=(place / "lib",),
        version="3.10.13",
        missing=missing,
    )


def test_setup_prints_the_libraries_folder_and_tells_what_it_does_on_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []

    def setup(name: str, *, python: Path | None, again: bool, report: environment.Tell) -> Environment:
        asked.append((name, python, again))
        report("installing")
        return made(missing=("tensorflow==2.11.1",))

    monkeypatch.setattr(environment, "setup", setup)
    out, err = run("setup", "bigcodebench", "--python", "/x/python3.10", "--again")
    assert out == "/somewhere/lib\n"
    assert err == (
        "installing\nwarning: bigcodebench lacks tensorflow==2.11.1: tasks that need them cannot be judged\n"
    )
    assert asked == [("bigcodebench", Path("/x/python3.10"), True)]
    record = json.loads(run("setup", "bigcodebench", "--json")[0])
    assert record["site_packages"] == ["/somewhere/lib"]
    assert record["warning"].startswith("bigcodebench lacks")
    assert asked[1] == ("bigcodebench", None, False)


def test_setup_of_a_benchmark_that_needs_none_says_so() -> None:
    with pytest.raises(SettingsError, match="'mbpp' has no environment of its own; known: bigcodebench"):
        run("setup", "mbpp")


def test_ctrl_c_in_a_set_up_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object, **__: object) -> Environment:
        raise KeyboardInterrupt

    monkeypatch.setattr(environment, "setup", stop)
    done = runner.invoke(cli.app, ["setup", "bigcodebench"])
    assert done.exit_code == 130
    assert done.stderr == "stopped; `unmask data setup bigcodebench` begins it again\n"


# overlap

PROMPT = "def intersperse(numbers, delimiter): insert a number delimiter between every two consecutive elements"


@pytest.fixture
def benchmark(folder: Path) -> Path:
    """A benchmark of two tasks, as a file."""
    rows = [
        {"task_id": "Mine/0", "prompt": PROMPT, "entry_point": "f", "tests": [{"input": [1], "output": 1}]},
        {"task_id": "Mine/1", "prompt": "def f(): ...", "entry_point": "f", "tests": [{"input": [1], "output": 1}]},
    ]
    path = folder / "mine.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_overlap_counts_the_tasks_that_a_training_file_has_seen(folder: Path, benchmark: Path) -> None:
    train = folder / "train.jsonl"
    train.write_text(json.dumps({"text": f"# {PROMPT.upper()}"}) + '\n{"text": "solves Mine/1"}\n{"text": "other"}\n')
    out, err = run("overlap", train, "--benchmark", benchmark)
    assert out == f"{benchmark}\t2\t1\t1\t2\n"
    assert err.splitlines() == [
        f"3 documents of {train} were read",
        f"{benchmark}: document 1 shares Mine/0: "
        "def intersperse numbers delimiter insert a number delimiter between every",
        f"{benchmark}: document 2 names Mine/1: Mine/1",
        f"{benchmark}: tasks of fewer than 10 words, found by id alone: 1",
    ]
    found = json.loads(run("overlap", train, "--benchmark", benchmark, "--json", "--n", "14")[0])
    assert found["n"] == 14
    assert found["benchmarks"][str(benchmark)]["tasks_by_ngram"] == []


def test_overlap_without_a_name_takes_the_benchmarks_that_are_here(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(name: str, *, answers: bool) -> benchmarks.Benchmark:
        assert not answers  # no reference is run
        tasks = (Task(task_id="A/0", prompt=PROMPT),)
        return benchmarks.Benchmark(name=name, version="", kind="complete", tasks=tasks, data_sha256={})

    needs = {"here": ("right.jsonl",), "elsewhere": ("absent.jsonl", "right.jsonl")}
    monkeypatch.setattr(benchmarks, "NAMES", tuple(needs))
    monkeypatch.setattr(benchmarks, "needed_files", lambda name, version=None: needs[name])
    monkeypatch.setattr(benchmarks, "load", load)
    train = folder / "train.txt"
    train.write_text(PROMPT)
    out, err = run("overlap", train)
    assert out == "here\t1\t0\t1\t1\n"
    assert err.startswith("not compared, since their data is not here: elsewhere; `unmask data fetch NAME` gets it\n")


def test_overlap_with_no_data_at_all_says_how_to_get_some(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmarks, "NAMES", ("elsewhere",))
    monkeypatch.setattr(benchmarks, "needed_files", lambda name, version=None: ("absent.jsonl",))
    with pytest.raises(TaskError) as caught:
        run("overlap", folder / "right.jsonl")
    assert str(caught.value) == (
        "no benchmark's data is on this machine, so there is nothing to compare with: name a benchmark "
        "(--benchmark humaneval+) to have it downloaded, or set UNMASK_DATA to the folder that holds the data"
    )


# build, tokenizer, synth


@pytest.fixture
def texts(folder: Path) -> Path:
    path = folder / "texts.jsonl"
    rows = [{"text": f"def f{i}():\n    return {i}\n", "license": "MIT" if i else "GPL-3.0-only"} for i in range(9)]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*rows, rows[3]]))
    return path


@pytest.fixture
def vocabulary(folder: Path) -> Path:
    place = folder / "vocabulary"
    Tokenizer.byte_level().save(place)
    return place


def test_build_prints_the_folder_and_tells_what_was_dropped(folder: Path, texts: Path, vocabulary: Path) -> None:
    place = folder / "shards"
    out, err = run("build", texts, "--tokenizer", vocabulary, "--output", place, "--licences", "mit, Apache-2.0")
    shards = Shards.open(place)
    assert out == f"{place}\t8\t{shards.num_tokens}\n"
    assert err.splitlines() == [
        f"reading {texts}",
        f"writing {place}",
        "8 documents kept, 2 dropped: duplicate 1, licence 1",
    ]
    options = ("--tokenizer", vocabulary, "--seed", "3", "--dedup", "none", "--json")
    record = json.loads(run("build", texts, *options, "--output", folder / "more")[0])
    assert (record["path"], record["num_documents"], record["dropped"]) == (str(folder / "more"), 10, {})
    assert record["settings"]["seed"] == 3


def test_build_leaves_out_what_benchmarks_ask_for(folder: Path, benchmark: Path, texts: Path, vocabulary: Path) -> None:
    with texts.open("a") as file:
        file.write(json.dumps({"text": f"# {PROMPT}"}) + "\n" + json.dumps({"text": "# solves Mine/1"}) + "\n")
    options = ("--tokenizer", vocabulary, "--output", folder / "shards", "--without-benchmarks", benchmark)
    assert run("build", texts, *options)[1].splitlines()[-1] == (
        "9 documents kept, 3 dropped: benchmark 2, duplicate 1"
    )


def test_build_refuses_a_setting_before_it_reads_anything(folder: Path, vocabulary: Path) -> None:
    with pytest.raises(SettingsError, match="dedup='fuzzy': give one of exact, near, none"):
        run("build", "nowhere", "--tokenizer", vocabulary, "--output", folder / "shards", "--dedup", "fuzzy")


def test_build_with_an_unknown_tokenizer_names_the_nearest_model(folder: Path, texts: Path) -> None:
    with pytest.raises(UnknownModelError, match=r"did you mean qwen2\.5-coder-0\.5b-instruct"):
        run("build", texts, "--tokenizer", "qwen2.5-coder-0.5b-instrct", "--output", folder / "shards")


def test_the_folder_of_a_run_does_not_hide_the_model_of_its_name(
    folder: Path, texts: Path, vocabulary: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def resolve(name: str, **_: object) -> Resolved:
        return Resolved(path=vocabulary, source="the package", name=name)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(hub, "resolve", resolve)
    (tmp_path / "tiny" / "sft").mkdir(parents=True)
    run("build", texts, "--tokenizer", "tiny", "--output", folder / "shards")
    assert Shards.open(folder / "shards").num_documents == 9


@pytest.mark.parametrize("command", ["build", "tokenizer", "synth"])
def test_ctrl_c_leaves_nothing_and_says_so(
    folder: Path, texts: Path, vocabulary: Path, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(corpus, "document_of", stop)
    monkeypatch.setattr(write, "write", stop)
    place = folder / "out" / "made"
    place.parent.mkdir()
    arguments = {
        "build": [texts, "--tokenizer", vocabulary],
        "tokenizer": [texts, "--vocab-size", 300],
        "synth": ["test", "--count", 3],
    }[command]
    done = runner.invoke(cli.app, [str(argument) for argument in (command, *arguments, "--output", place)])
    assert done.exit_code == 130
    assert done.stderr.splitlines()[-1] == f"stopped; nothing was written to {place}"
    assert list(place.parent.iterdir()) == []


def test_tokenizer_trains_one_that_can_be_loaded(folder: Path, texts: Path) -> None:
    place = folder / "trained"
    out, err = run("tokenizer", texts, "--vocab-size", 270, "--output", place)
    assert out == f"{place}\t270\n"
    assert err == f"reading {texts}\n"
    found = Tokenizer.from_folder(place)
    assert (found.vocab_size, found.eos_id, found.mask_id) == (270, 0, 3)
    with pytest.raises(TaskError, match="trained is there already, and is never written over; delete it or choose"):
        run("tokenizer", texts, "--vocab-size", 270, "--output", place)


def test_tokenizer_says_when_the_sources_are_too_few(folder: Path, texts: Path) -> None:
    out, err = run("tokenizer", texts, "--vocab-size", 5000, "--output", folder / "trained", "--json")
    size = json.loads(out)["vocab_size"]
    assert size < 400
    assert err.splitlines()[-1] == f"the sources gave {size:,} ids, fewer than 5,000: nothing was left to merge"


def test_synth_asks_for_tasks_and_prints_the_file(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[object, ...]] = []

    def made(split: str, count: int, *, seed: int, path: Path, format: str, executor: object, report: Any) -> int:
        asked.append((split, count, seed, path, format))
        report(1, count)
        return count

    monkeypatch.setattr(write, "write", made)
    place = folder / "tasks.jsonl"
    out, err = run("synth", "test", "--count", 3, "--seed", 5, "--format", "text", "--output", place)
    assert out == f"{place}\t3\n"
    assert err == "making test tasks\n"
    assert asked == [("test", 3, 5, place, "text")]


def test_synth_writes_over_nothing(folder: Path) -> None:
    place = folder / "tasks.jsonl"
    place.write_text("mine")
    with pytest.raises(TaskError, match=r"tasks\.jsonl is there already, and is never written over; delete it or ch"):
        run("synth", "test", "--count", 3, "--output", place)
    assert place.read_text() == "mine"


def test_ctrl_c_while_a_tokenizer_is_written_leaves_nothing_and_says_so(
    folder: Path, texts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(tokenizer: Tokenizer, place: Path) -> None:
        place.mkdir()
        (place / "tokenizer.json").write_text("{")
        raise KeyboardInterrupt

    monkeypatch.setattr(Tokenizer, "save", stop)
    place = folder / "out" / "made"
    arguments = ["tokenizer", texts, "--vocab-size", 300, "--output", place]
    done = runner.invoke(cli.app, [str(argument) for argument in arguments])
    assert (done.exit_code, done.stderr.splitlines()[-1]) == (130, f"stopped; nothing was written to {place}")
    assert list(place.parent.iterdir()) == []


def test_a_build_on_a_terminal_draws_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(sys, "stderr", terminal)
    with data_terminal.counting() as tell:
        tell("reading a[b].jsonl", 5, 9)
    assert "reading a[b].jsonl" in terminal.getvalue()
    assert "5/9" in terminal.getvalue()


def test_build_imports_no_torch(folder: Path, texts: Path, vocabulary: Path) -> None:
    arguments = ["build", str(texts), "--tokenizer", str(vocabulary), "--output", str(folder / "shards")]
    code = (
        f"import sys\nfrom unmask.cli.data import app\napp({arguments}, standalone_mode=False)\n"
        "print('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"


def test_neither_help_nor_overlap_imports_torch(folder: Path, benchmark: Path) -> None:
    code = (
        "import sys\nfrom unmask.cli.data import app\n"
        f"app(['overlap', {str(benchmark)!r}, '--benchmark', {str(benchmark)!r}], standalone_mode=False)\n"
        "print(sorted({'torch', 'numpy', 'tokenizers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


# rl and select

ACE = [
    {
        "id": f"ace_{number}",
        "question": f"Write f{number}(x).",
        "test_cases": [f"assert f{number}(1) == {number}", f"assert f{number}(2) == {number + 1}"],
        "inferences": [
            {"model_name": "qwen", "completion": f"def f{number}(x): return x + {number - 1}", "pass_rate": rate}
            for rate in (0.0, number / 10)
        ],
    }
    for number in range(6)
]


@pytest.fixture
def recorded(folder: Path) -> Path:
    path = folder / "acecode.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ACE), encoding="utf-8")
    return path


def test_select_prints_what_each_step_dropped_and_writes_the_tasks(recorded: Path, folder: Path) -> None:
    place = folder / "hard.jsonl"
    out, err = run("select", recorded, "--mean-percentile", 50, "--output", place)
    assert out.splitlines() == [
        "tasks\t-\t0\t6",
        "recorded answers\t-\t0\t6",
        "mean up to percentile 50\t0.125\t3\t3",
        "deviation from percentile 60 of these\t0.06\t2\t1",
        "duplicate\t-\t0\t1",
        "usable tests\t-\t0\t1",
    ]
    assert err == f"{place}: 1 tasks\n"
    assert [task.task_id for task in read_tasks(place)] == ["ace_2"]


def test_select_as_json_has_the_steps_and_says_which_tasks_no_answer_passed(recorded: Path, folder: Path) -> None:
    place = folder / "hard.jsonl"
    options = ["--rule", "as-coded", "--std-percentile", 0, "--stubs", "--json"]
    out, err = run("select", recorded, *options, "--output", place)
    found = json.loads(out)
    assert (found["tasks"], found["num_stubs"], found["num_never_passed"]) == (4, 2, 1)
    assert found["steps"][2] == {"name": "mean up to percentile 20", "dropped": 4, "left": 2, "threshold": 0.05}
    assert f"{place}: 4 tasks, 2 of them stubs" in err
    assert "of 1 chosen tasks no recorded answer passed a single test; --min-pass 0.01 leaves them out" in err


def test_select_reads_the_pass_rates_of_our_evaluations(recorded: Path, folder: Path) -> None:
    tasks = folder / "mine.jsonl"
    run("select", recorded, "--mean-percentile", 100, "--std-percentile", 0, "--output", tasks)
    passes = {"ace_1": [True, True], "ace_2": [True, False], "ace_3": [False, False]}
    outcomes = {
        task_id: tuple(Outcome(sample=index, status="pass" if passed else "fail") for index, passed in enumerate(found))
        for task_id, found in passes.items()
    }
    outcomes["ace_3"] += (Outcome(sample=2, status="sandbox_error"),)
    cell = CellResult(
        name="main",
        settings={},
        num_samples=7,
        num_tasks_judged=3,
        pass_at_k={"1": 0.5},
        intervals={"1": (0.0, 1.0)},
        tasks=outcomes,
    )
    result = Result(benchmark="mine", version="", model="tiny", num_tasks=3, n=2, seed=0, cells=(cell,))
    save_result(result, folder)
    place = folder / "hard.jsonl"
    options = ["--results", folder, "--mean-percentile", 50, "--models", "tiny"]
    out, _ = run("select", tasks, *options, "--output", place)
    assert out.splitlines()[1] == "recorded answers\t-\t3\t3"
    assert [task.task_id for task in read_tasks(place)] == ["ace_2"]


def test_select_refuses_without_a_traceback(recorded: Path, folder: Path) -> None:
    place = folder / "hard.jsonl"
    to = ["--output", place]
    assert "has no answers of the model 'qwem'; did you mean qwen?" in refusal(
        "data", "select", recorded, "--models", "qwem", *to
    )
    assert "mean_percentile=120: a percentile lies between" in refusal(
        "data", "select", recorded, "--mean-percentile", 120, *to
    )
    assert "did you mean as-coded?" in refusal("data", "select", recorded, "--rule", "as_coded", *to)
    assert "nothing is left after the step 'best answer' (0.9)" in refusal(
        "data", "select", recorded, "--min-pass", 0.9, *to
    )
    assert "there is no file" in refusal("data", "select", folder / "none.jsonl", *to)
    assert "acecode.jsonl is not JSON" in refusal("data", "select", recorded, "--results", recorded, *to)
    assert not place.exists()
    place.write_text("mine")
    assert "is there already, and is never written over" in refusal("data", "select", recorded, *to)
    assert place.read_text() == "mine"


def test_rl_writes_a_file_of_tasks_apart_from_the_benchmarks_and_says_what_it_left_out(
    recorded: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: list[str] = []

    def load(name: str, *, answers: bool) -> Any:
        loaded.append(name)
        return SimpleNamespace(tasks=[Task(task_id="B/1", prompt="one two three four five six seven eight nine ten")])

    monkeypatch.setattr(benchmarks, "load", load)
    rows = [*ACE, {**ACE[0], "id": "copied", "question": "One, two, three: four five six seven eight nine ten! f0"}]
    recorded.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    place = folder / "rl.jsonl"
    out, err = run("rl", recorded, "--count", 2, "--output", place, "--workers", 1)
    assert out == f"{place}\t2\n"
    assert loaded == ["humaneval+", "mbpp+"]
    assert err.splitlines() == [
        "1 dropped: overlaps a benchmark 1",
        "2 tasks have no solution: nothing says that their tests can be passed",
    ]
    assert [task.task_id for task in read_tasks(place)] == ["ace_0", "ace_1"]


def test_rl_refuses_without_a_traceback_and_before_it_opens_anything(recorded: Path, folder: Path) -> None:
    to = ["--output", folder / "rl.jsonl"]
    assert "'p33' is no RL set; did you mean p3?" in refusal("data", "rl", "p33", *to)
    assert "synthetic-hard has as many tasks as are asked for" in refusal("data", "rl", "synthetic-hard", *to)
    assert "seed=3 has no effect on p3" in refusal("data", "rl", "p3", "--seed", 3, *to)
    for command in (("rl", "missing.jsonl"), ("select", "missing.jsonl")):  # the place of the output is looked at first
        assert "task files end in .jsonl" in refusal("data", *command, "--output", folder / "rl.json")
        assert "there is no folder" in refusal("data", *command, "--output", folder / "nowhere" / "rl.jsonl")
    recorded.write_text(json.dumps({**ACE[0], "test_cases": []}) + "\n", encoding="utf-8")
    message = refusal("data", "rl", recorded, "--without-benchmarks", "", "--workers", 1, *to)
    assert "line 1: the task 'ace_0' has no tests: 'test_cases' has to be a list of asserts" in message
    assert not (folder / "rl.jsonl").exists()
