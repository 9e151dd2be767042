"""The record of a run: what its frames are, what its file keeps, and what it says about bad files."""

import errno
import json
import os
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unmask import trajectory as trajectories
from unmask.errors import TrajectoryError
from unmask.trajectory import Commit, Step, StepEvent, Trajectory, first_difference, load, save


def commit(position: int, token: int = 9, confidence: float = 0.5) -> Commit:
    return Commit(0, position, token, confidence, 0.25)


def small(**changes: Any) -> Trajectory:
    run = Trajectory(
        initial_ids=[5, None, None],
        steps=[Step(commits=[commit(2, 7)]), Step(commits=[commit(1, 8)])],
        model="tiny",
        settings={"steps": 2},
        seed=3,
        end_ids=[2],
        pieces={5: "def", 7: "()", 8: " f"},
        num_forwards=2,
        finish_reason="length",
    )
    return replace(run, **changes)


# --- runs of any shape --------------------------------------------------------------------------------------------

NUMBERS = st.integers(0, 10**6).map(lambda number: number / 10**6)  # what six digits keep
PIECES = st.one_of(st.text(), st.binary(max_size=4).map(lambda raw: raw.decode("utf-8", "surrogateescape")))


@st.composite
def runs(draw: st.DrawFn) -> Trajectory:
    initial = draw(st.lists(st.one_of(st.none(), st.integers(0, 50)), max_size=8))
    length, steps = len(initial), []
    for _ in range(draw(st.integers(0, 4))):
        resized = []
        for _ in range(draw(st.integers(0, 2))):
            position = draw(st.integers(0, length))
            delta = draw(st.integers(position - length, 3))
            resized.append((position, delta))
            length += delta
        positions = st.lists(st.integers(0, length - 1), unique=True, max_size=4) if length else st.just([])
        runners = st.lists(st.tuples(st.integers(0, 50), NUMBERS), max_size=2).map(tuple)
        commits = [
            Commit(0, p, draw(st.integers(0, 50)), draw(NUMBERS), draw(NUMBERS), draw(runners)) for p in draw(positions)
        ]
        seen = [(p, draw(NUMBERS), draw(NUMBERS)) for p in draw(positions)]
        drafted = [(p, draw(st.integers(0, 99))) for p in draw(positions)]
        steps.append(Step(commits=commits, remasked=draw(positions), resized=resized, seen=seen, drafted=drafted))
    return Trajectory(
        initial_ids=initial,
        steps=steps,
        model=draw(st.text()),
        settings=draw(st.dictionaries(st.text(), st.one_of(st.none(), st.booleans(), st.integers(), st.text()))),
        label=draw(st.text(max_size=4)),
        seed=draw(st.integers(0, 2**63)),
        sample=draw(st.integers(0, 9)),
        end_ids=draw(st.lists(st.integers(0, 50), max_size=2)),
        pieces=draw(st.dictionaries(st.integers(0, 50), PIECES, max_size=6)),
        num_forwards=draw(st.integers(0, 99)),
        finish_reason=draw(st.sampled_from([None, "stop", "length"])),
    )


@given(saved=st.lists(runs(), min_size=1, max_size=3))
@settings(max_examples=100, deadline=None)
def test_what_is_saved_is_what_is_loaded(saved: list[Trajectory], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("run") / "run.jsonl"
    save(path, saved)
    assert load(path) == saved
    assert len(path.read_bytes().splitlines()) == len(saved)


@given(run=runs())
@settings(max_examples=200, deadline=None)
def test_frames_agree_with_tokens_that_carry_their_own_history(run: Trajectory) -> None:
    """The slow version: a row of cells that move as one, so that no bookkeeping by position can go wrong."""
    row: list[dict[str, Any]] = [{"id": token, "given": token is not None} for token in run.initial_ids]
    frames = run.frames()
    first = next(frames)
    assert (first.step, list(first.ids), first.new) == (0, run.initial_ids, frozenset())
    for step, frame in zip(run.steps, frames, strict=True):
        for position, delta in step.resized:
            if delta < 0:
                row = row[:position] + row[position - delta :]
            else:
                row = row[:position] + [{"id": None, "given": False} for _ in range(delta)] + row[position:]
        for position in step.remasked:
            row[position] = {"id": None, "given": False}
        for done in step.commits:
            row[done.position] = {"id": done.token_id, "given": False, "confidence": done.confidence}
        assert list(frame.ids) == [cell["id"] for cell in row]
        assert frame.given == {i for i, cell in enumerate(row) if cell["given"]}
        assert frame.confidence == {i: cell["confidence"] for i, cell in enumerate(row) if "confidence" in cell}
        assert frame.new == {done.position for done in step.commits}


# --- frames, steps, text ------------------------------------------------------------------------------------------


def test_inserted_masks_push_given_and_settled_tokens_along() -> None:
    run = small(steps=[Step(commits=[commit(2, 7, 0.9)]), Step(resized=[(1, 2)], commits=[commit(1)])])
    *_, last = run.frames()
    assert last.ids == (5, 9, None, None, 7)
    assert last.given == {0}
    assert last.confidence == {1: 0.5, 4: 0.9}


def test_removed_tokens_take_their_history_with_them() -> None:
    run = small(
        initial_ids=[5, 6, None, None, 4],
        steps=[Step(commits=[commit(2), commit(3, 7, 0.9)]), Step(resized=[(1, -2)])],
    )
    *_, last = run.frames()
    assert last.ids == (5, 7, 4)
    assert last.given == {0, 2}
    assert last.confidence == {1: 0.9}


def test_a_remasked_position_is_open_again_and_may_be_committed_in_the_same_step() -> None:
    run = small(steps=[Step(commits=[commit(1), commit(2)]), Step(remasked=[1, 2], commits=[commit(2, 4)])])
    *_, last = run.frames()
    assert last.ids == (5, None, 4)
    assert last.confidence == {2: 0.5}


def test_record_keeps_what_one_row_did() -> None:
    run = Trajectory(initial_ids=[None, None])
    commits = (Commit(0, 0, 7, 0.5, 0.1), Commit(1, 1, 8, 0.5, 0.1))
    run.record(StepEvent(step=1, asked=(0, 1), commits=commits, remasked=((1, 0),)), row=1)
    run.record(StepEvent(step=2, asked=(0,)), row=1)  # the network was called, but not for this row
    assert [c.token_id for c in run.steps[0].commits] == [8]
    assert run.steps[0].remasked == [0]
    assert run.num_forwards == 1


def test_record_keeps_what_was_drafted_for_one_row() -> None:
    run = small(steps=[])
    commits = (Commit(0, 1, 7, 0.5, 0.1), Commit(0, 2, 8, 0.5, 0.1), Commit(1, 1, 9, 0.5, 0.1))
    run.record(StepEvent(step=0, commits=commits, drafted=((0, 1, 7), (0, 2, 5), (1, 1, 9))), row=0)
    assert [step.drafted for step in run.steps] == [[(1, 7), (2, 5)]]
    assert run.steps[0].num_accepted == 1


def test_record_keeps_what_the_network_had_for_one_row() -> None:
    run = Trajectory(initial_ids=[None, None])
    run.record(StepEvent(step=0, seen={0: [(0, 0.5, 0.1)], 1: [(1, 0.75, 0.2)]}), row=1)
    run.record(StepEvent(step=1), row=1)
    assert [step.seen for step in run.steps] == [[(1, 0.75, 0.2)], []]


def test_ids_at_counts_steps_from_the_untouched_canvas() -> None:
    assert [small().ids_at(step) for step in range(3)] == [[5, None, None], [5, None, 7], [5, 8, 7]]


@pytest.mark.parametrize("step", [-1, 3])
def test_ids_at_refuses_a_step_outside_the_run(step: int) -> None:
    with pytest.raises(TrajectoryError) as caught:
        small().ids_at(step)
    assert str(caught.value) == (
        f"step {step} was asked for, but this trajectory has 2 steps; give a step between 0 and 2"
    )


def test_order_is_by_step_then_by_position() -> None:
    run = small(steps=[Step(commits=[commit(2), commit(1)]), Step(commits=[commit(0)])])
    assert run.order() == [1, 2, 0]


def test_text_joins_split_characters_and_shows_masks_and_strangers() -> None:
    run = small(pieces={5: "\udce6\udc97", 7: "\udca5", 8: "\udce6"})
    assert run.text([5, 7, None, 8, 99], mask="░") == "日░\ufffd<99>"


# --- first_difference ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("other", "answer"),
    [
        (small(), None),
        (small(seed=9, model="else"), None),
        (small(initial_ids=[6, None, None]), 0),
        (small(steps=small().steps[:1]), 2),
        (small(steps=[*small().steps, Step()]), 3),
        (small(steps=[Step(commits=[commit(2, 6)]), small().steps[1]]), 1),
        (small(steps=[small().steps[0], Step(commits=[commit(1, 8)], remasked=[2])]), 2),
        (small(steps=[small().steps[0], Step(commits=[commit(1, 8)], resized=[(3, 1)])]), 2),
    ],
)
def test_first_difference_is_the_first_step_that_differs(other: Trajectory, answer: int | None) -> None:
    assert first_difference(small(), other) == answer
    assert first_difference(other, small()) == answer


def test_first_difference_ignores_the_order_and_the_confidence_within_a_step() -> None:
    one = small(steps=[Step(commits=[commit(1, 7, 0.1), commit(2, 8, 0.2)], remasked=[0, 1])])
    two = small(steps=[Step(commits=[commit(2, 8, 0.9), commit(1, 7, 0.9)], remasked=[1, 0])])
    assert first_difference(one, two) is None


# --- saving -------------------------------------------------------------------------------------------------------


def fail_after_some_bytes(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    real_open = Path.open

    def full(self: Path, mode: str = "r", **options: Any) -> IO[Any]:
        file = real_open(self, mode, **options)
        if "w" in mode or "x" in mode:

            def writelines(lines: Any) -> None:
                file.write("half a li")
                raise error

            monkeypatch.setattr(file, "writelines", writelines, raising=False)
        return file

    monkeypatch.setattr(Path, "open", full)


def test_a_full_disk_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.jsonl"
    save(path, [small()])
    with monkeypatch.context() as patch:
        fail_after_some_bytes(patch, OSError(errno.ENOSPC, "No space left on device"))
        with pytest.raises(TrajectoryError) as caught:
            save(path, [small(seed=99)])
    assert str(caught.value) == (
        f"could not write {path} (No space left on device); what was there before is untouched: "
        "make room or give another file"
    )
    assert load(path) == [small()]
    assert list(tmp_path.iterdir()) == [path]


def test_an_interrupt_while_saving_leaves_the_old_file_and_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "run.jsonl"
    save(path, [small()])
    with monkeypatch.context() as patch:
        fail_after_some_bytes(patch, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            save(path, [small(seed=99)])
    assert load(path) == [small()]
    assert list(tmp_path.iterdir()) == [path]


def test_saving_into_a_missing_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(TrajectoryError, match=r"could not write .*run\.jsonl \(No such file or directory\)"):
        save(tmp_path / "nowhere" / "run.jsonl", [small()])


def test_saving_over_a_folder_says_so(tmp_path: Path) -> None:
    with pytest.raises(TrajectoryError, match="Is a directory"):
        save(tmp_path, [small()])


def test_a_saved_file_has_the_usual_permissions(tmp_path: Path) -> None:
    save(tmp_path / "run.jsonl", [small()])
    (tmp_path / "plain").touch()
    modes = {stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("run.jsonl", "plain")}
    assert len(modes) == 1


def test_saving_through_a_link_keeps_the_link(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "run.jsonl")
    save(tmp_path / "link", [small()])
    assert (tmp_path / "link").is_symlink()
    assert load(tmp_path / "run.jsonl") == [small()]


def test_a_pipe_is_written_straight_and_stays_a_pipe(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        save(pipe, [small()])
        assert json.loads(os.read(reader, 65536))["model"] == "tiny"
    finally:
        os.close(reader)
    assert pipe.is_fifo()


def test_what_was_observed_is_in_the_file_only_where_there_is_some(tmp_path: Path) -> None:
    observed = Commit(0, 2, 7, 0.5, 0.25, ((9, 0.3), (4, 0.1234567)))
    save(tmp_path / "run.jsonl", [small(steps=[Step(commits=[observed], seen=[(1, 1 / 3, 2.0)]), small().steps[1]])])
    first, second = json.loads((tmp_path / "run.jsonl").read_text())["steps"]
    assert first == {"commits": [[2, 7, 0.5, 0.25, [[9, 0.3], [4, 0.123457]]]], "seen": [[1, 0.333333, 2.0]]}
    assert second == {"commits": [[1, 8, 0.5, 0.25]]}


def test_a_file_from_before_anything_was_observed_loads_as_it_did(tmp_path: Path) -> None:
    (tmp_path / "old.jsonl").write_text(
        '{"format":"unmask.trajectory","version":1,"model":"tiny","settings":{"steps":2},"seed":3,"sample":0,'
        '"initial_ids":[5,null,null],"end_ids":[2],"pieces":{"5":"def","7":"()","8":" f"},'
        '"steps":[{"commits":[[2,7,0.5,0.25]]},{"commits":[[1,8,0.5,0.25]]}],"num_forwards":2,'
        '"finish_reason":"length"}\n'
    )
    assert load(tmp_path / "old.jsonl") == [small()]
    save(tmp_path / "new.jsonl", [small()])
    assert (tmp_path / "new.jsonl").read_bytes() == (tmp_path / "old.jsonl").read_bytes()


# --- loading bad files --------------------------------------------------------------------------------------------


def line(**changes: Any) -> str:
    data = trajectories._to_json(small())
    return json.dumps({key: value for key, value in {**data, **changes}.items() if value != "gone"})


def message_for(path: Path, content: str | bytes) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(TrajectoryError) as caught:
        load(path)
    text = str(caught.value)
    assert text.startswith(str(path))
    return text.removeprefix(str(path))


def test_a_missing_file_is_answered_with_the_command_that_writes_one(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with pytest.raises(TrajectoryError) as caught:
        load(path)
    assert str(caught.value) == (f"there is no file {path}; `unmask generate PROMPT --trajectory {path}` writes one")


def test_a_folder_is_called_a_folder(tmp_path: Path) -> None:
    with pytest.raises(TrajectoryError) as caught:
        load(tmp_path)
    assert str(caught.value) == f"{tmp_path} is a folder, not a trajectory; give one of the files in it"


def test_a_path_through_a_file_could_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(TrajectoryError, match=r"could not be read \(Not a directory\); check the path"):
        load(tmp_path / "file" / "run.jsonl")


@pytest.mark.parametrize("content", ["", "\n\n", "  \n"])
def test_an_empty_file_is_called_empty(tmp_path: Path, content: str) -> None:
    assert message_for(tmp_path / "run.jsonl", content).startswith(
        " is empty; a trajectory file has one JSON object per line, and `unmask generate PROMPT --trajectory"
    )


def test_a_file_that_is_no_text_is_not_a_trajectory(tmp_path: Path) -> None:
    assert message_for(tmp_path / "run.jsonl", b"\xff\xfe\x00") == (
        " is not a trajectory: it must be a text file with one JSON object per line"
    )


@pytest.mark.parametrize("bad", [line()[:40], "nonsense", "[" * 200_000, "[" + "9" * 5000 + "]"])
def test_a_line_that_is_cut_short_is_named(tmp_path: Path, bad: str) -> None:
    text = message_for(tmp_path / "run.jsonl", f"{line()}\n{bad}\n")
    assert text.startswith(", line 2 is not JSON (")
    assert text.endswith("); the file is cut short or damaged")


@pytest.mark.parametrize("bad", ["[]", "3", '{"a": 1}', line(format="else")])
def test_another_format_is_not_a_trajectory(tmp_path: Path, bad: str) -> None:
    assert message_for(tmp_path / "run.jsonl", bad) == (
        ', line 1 is not a trajectory: it lacks "format": "unmask.trajectory"; give a file that `--trajectory` wrote'
    )


def test_a_newer_version_is_left_to_a_newer_program(tmp_path: Path) -> None:
    assert message_for(tmp_path / "run.jsonl", line(version=2)) == (
        ", line 1 has version 2, this program reads version 1; "
        "read it with the release that wrote it, or write it again"
    )


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (line(steps="gone"), "it lacks 'steps'"),
        (line(initial_ids=["x"]), "invalid literal"),
        (line(initial_ids=None), "not iterable"),
        (line(steps=[{"commits": [[1, 2]]}]), "not enough values"),
        (line(steps=[{"commits": [[1, 2, 0.5, 0.5, [], 3]]}]), "too many values"),
        (line(steps=[{"commits": [[1, 2, 0.5, 0.5, [[3]]]]}]), "not enough values"),
        (line(steps=[{"commits": [[1, 2, 0.5, 0.5, [[3, "x"]]]]}]), "could not convert string to float"),
        (line(steps=[{"commits": [[1, 2, 0.5, 0.5, [[-3, 0.5]]]]}]), "runner-up [-3, 0.5], no id and probability"),
        (line(steps=[{"commits": [[1, 2, 0.5, 0.5, [[3, float("nan")]]]]}]), "step 1 has the runner-up [3, nan]"),
        (line(steps=[{"commits": [[1, 2, 0.5, 0.5, [[3, 1.5]]]]}]), "step 1 has the runner-up [3, 1.5]"),
        (line(steps=[{"commits": [[1, 2, float("nan"), 0.5]]}]), "step 1 committed [nan, 0.5] at 1, no confidence"),
        (line(steps=[{"commits": [[1, 2, -0.1, 0.5]]}]), "step 1 committed [-0.1, 0.5] at 1"),
        (line(steps=[{"commits": [[1, 2, 1.1, 0.5]]}]), "step 1 committed [1.1, 0.5] at 1"),
        (line(steps=[{"commits": [[1, 2, 0.5, float("inf")]]}]), "step 1 committed [0.5, inf] at 1"),
        (line(steps=[{"commits": [[1, 2, 0.5, -1]]}]), "step 1 committed [0.5, -1.0] at 1"),
        (line(model="\ud83d"), "the model's name is no text"),
        (line(label="\ud83d"), "the label is no text"),
        (line(finish_reason=["stop"]), "the finish reason is no text"),
        (line(finish_reason="\ud83d"), "the finish reason is no text"),
        (line(steps=[{"commits": [], "seen": [[3, 0.5, 0.5]]}]), "step 1 names position 3 in a row of 3"),
        (line(steps=[{"commits": [], "seen": [[1, 2, 0.5]]}]), "step 1 saw [2.0, 0.5] at 1, no confidence and entropy"),
        (line(steps=[{"commits": [], "seen": [[1, 1, -1]]}]), "step 1 saw [1.0, -1.0] at 1"),
        (line(steps=[{"commits": [], "seen": [[1, 1, float("inf")]]}]), "step 1 saw [1.0, inf] at 1"),
        (line(steps=[{"commits": [], "seen": [[1, 0.5]]}]), "not enough values"),
        (line(steps=[{"commits": [], "drafted": [[3, 7]]}]), "step 1 names position 3 in a row of 3"),
        (line(steps=[{"commits": [], "drafted": [[1]]}]), "not enough values"),
        (line(pieces=[]), "no attribute 'items'"),
        (line(pieces={"5": "\ud83d"}), "the piece of token 5 is no text"),
        (line(seed=float("inf")), "infinity"),
        (line(steps=[{"commits": [[3, 7, 0.5, 0.5]]}]), "step 1 names position 3 in a row of 3"),
        (line(steps=[{"commits": [], "remasked": [-1]}]), "step 1 names position -1 in a row of 3"),
        (line(steps=[{"commits": [], "resized": [[2, -2]]}]), "step 1 resizes position 2 by -2 in a row of 3"),
        (line(steps=[{"commits": [], "resized": [[9, 1]]}]), "step 1 resizes position 9 by 1 in a row of 3"),
    ],
)
def test_a_damaged_line_says_what_is_wrong_with_it(tmp_path: Path, bad: str, reason: str) -> None:
    text = message_for(tmp_path / "run.jsonl", bad)
    assert text.startswith(", line 1 is damaged: ")
    assert reason in text
    assert text.endswith("; write the file again")


def test_a_confidence_that_float32_summed_to_a_hair_above_one_is_read(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_text(line(steps=[{"commits": [[1, 2, 1.000001, -0.000001]]}]))
    assert load(path)[0].steps[0].commits[0].confidence == 1.000001


def test_a_name_of_the_greatest_length_can_be_written(tmp_path: Path) -> None:
    save(tmp_path / ("x" * 255), [Trajectory(initial_ids=[1])])
    assert load(tmp_path / ("x" * 255))[0].initial_ids == [1]


def test_a_line_separator_inside_a_string_does_not_end_the_line(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    path.write_text(line(model="a\u2028b").replace("\\u2028", "\u2028"), encoding="utf-8")
    assert load(path)[0].model == "a\u2028b"


# --- imports ------------------------------------------------------------------------------------------------------


def test_reading_drawing_and_replaying_load_no_heavy_library() -> None:
    program = (
        "import sys, unmask.trajectory, unmask.view.terminal, unmask.view.card, unmask.cli.replay\n"
        "heavy = {'torch', 'numpy', 'tokenizers', 'safetensors', 'huggingface_hub'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
