"""Drawing samples: what a sample depends on, how texts become programs, and what is refused before any work."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from unmask.data.task import Task
from unmask.decode.session import Model
from unmask.decode.settings import DecodeSettings
from unmask.errors import CanvasError, SettingsError
from unmask.evaluate.generate import Prompt, check_length, check_room, encode_prompts, generate, infill, programs
from unmask.evaluate.grid import Cell
from unmask.evaluate.prompts import Rendered, find_preset, render
from unmask.evaluate.samples import Sample
from unmask.sandbox.tests import CallTests
from unmask.trajectory import Trajectory

from checkpoints import MASK_ID, scripted, spell, tiny_model

SETTINGS = DecodeSettings(max_new_tokens=6, temperature=1.0, seed=3)
WARM = Cell(name="warm", settings=SETTINGS)
TASKS = [
    Task(
        task_id=f"t/{index}",
        prompt="def f(x):\n" + f'    """{"x" * (3 * index)}"""\n',
        entry_point="f",
        reference_completion="    return x\n",
    )
    for index in range(5)
]


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model("full")


def prompts_of(
    model: Model, tasks: Sequence[Task] = TASKS, preset: str = "base", kind: Any = "complete"
) -> list[Prompt]:
    forms = [render(find_preset(preset), task, benchmark="humaneval", kind=kind) for task in tasks]
    return encode_prompts(model, tasks, forms)


def draw(
    model: Model, *, cells: Sequence[Cell] = (WARM,), tasks: Sequence[Task] = TASKS, **given: Any
) -> dict[Any, Sample]:
    options = {"n": 1, "batch_size": 16, **given}
    batches = generate(model, prompts_of(model, tasks), cells, **options)
    return {sample.key: sample for batch in batches for sample in batch}


class Recorder(Model):
    """A model that keeps the rows of every batch."""

    def run_rows(self, rows: Any, settings: Any, **given: Any) -> Any:
        seen.append((rows, given["samples"], settings))
        return super().run_rows(rows, settings, **given)


seen: list[Any] = []


@pytest.fixture
def recorder(model: Model) -> Model:
    seen.clear()
    return Recorder(model.backbone, model.tokenizer, name=model.name)


def test_each_task_gets_n_samples_in_each_cell(model: Model) -> None:
    cells = [WARM, Cell(name="cold", settings=replace(SETTINGS, temperature=0.0))]
    drawn = draw(model, cells=cells, n=2)
    assert set(drawn) == {(cell.name, task.task_id, i) for cell in cells for task in TASKS for i in range(2)}


def test_a_sample_depends_neither_on_its_batch_nor_on_n_nor_on_the_other_tasks(model: Model) -> None:
    whole = draw(model, n=3, batch_size=4)
    for key, alone in draw(model, n=1, batch_size=1, tasks=TASKS[2:4]).items():
        assert replace(alone, seconds=0) == replace(whole[key], seconds=0, positions_computed=alone.positions_computed)


def test_samples_of_one_task_and_tasks_of_one_prompt_have_random_numbers_of_their_own(model: Model) -> None:
    twins = [replace(TASKS[0], task_id="a"), replace(TASKS[0], task_id="b")]
    drawn = draw(model, tasks=twins, n=2)
    assert len({sample.seed for sample in drawn.values()}) == 4
    assert len({sample.raw for sample in drawn.values()}) == 4


def test_another_seed_draws_other_samples(model: Model) -> None:
    other = Cell(name="warm", settings=replace(SETTINGS, seed=4))
    first, second = draw(model), draw(model, cells=[other])
    assert all(first[key].raw != second[key].raw for key in first)


def test_what_is_missing_is_drawn_in_the_company_of_its_first_time(recorder: Model) -> None:
    whole = draw(recorder, n=2, batch_size=4)
    first = list(seen)
    seen.clear()
    batch_of = {seed: index for index, (_, seeds, _) in enumerate(first) for seed in seeds}
    lost = next(key for key, sample in whole.items() if batch_of[sample.seed] == 1)
    again = draw(recorder, n=2, batch_size=4, done={key for key in whole if key != lost})
    assert seen == [first[1]]
    assert {key: replace(s, seconds=0) for key, s in again.items()} == {lost: replace(whole[lost], seconds=0)}


def test_a_whole_run_draws_nothing_again(recorder: Model) -> None:
    done = set(draw(recorder))
    seen.clear()
    assert draw(recorder, done=done) == {}
    assert seen == []


def test_batches_hold_prompts_of_about_one_length_the_longest_first(recorder: Model) -> None:
    draw(recorder, batch_size=2)
    lengths = [[len(row) for row in rows] for rows, _, _ in seen]
    assert lengths == [sorted(batch, reverse=True) for batch in lengths]
    assert [max(batch) for batch in lengths] == sorted((max(batch) for batch in lengths), reverse=True)
    assert list(map(len, lengths)) == [2, 2, 1]


def test_the_reference_mode_gives_each_sample_its_own_canvas_and_stream(recorder: Model) -> None:
    cell = Cell(name="dream", settings=replace(SETTINGS, mode="reference", policy="origin"))
    drawn = draw(recorder, cells=[cell], n=2, batch_size=8)
    assert [len(rows) for rows, _, _ in seen] == [1] * 10
    assert len({settings.seed for _, _, settings in seen}) == 10
    assert {key: s.raw for key, s in draw(recorder, cells=[cell], n=1).items()} == {
        key: s.raw for key, s in drawn.items() if key[2] == 0
    }


def test_progress_counts_every_sample_once(model: Model) -> None:
    told: list[int] = []
    draw(model, n=2, batch_size=4, report=told.append)
    assert sum(told) == 10


def test_a_text_is_cut_at_its_stop_string_and_becomes_a_program(model: Model) -> None:
    task = TASKS[0]
    (prompt,) = prompts_of(model, [task])
    writer = scripted(model, spell("    return x\n\nprint(f(1))\n", start=len(prompt.ids)))
    cell = Cell(name="cold", settings=DecodeSettings(max_new_tokens=40))
    ((sample,),) = generate(writer, [prompt], [cell], n=1, batch_size=1)
    assert sample.raw == "    return x\n\nprint("  # where it stands, the row is done
    assert sample.completion == "    return x\n"
    assert sample.program == task.prompt + "    return x\n"
    assert sample.finish_reason == "stop_string"
    assert (sample.num_tokens, sample.prompt_tokens) == (len(sample.raw), len(prompt.ids))


def test_an_answer_that_fills_its_room_is_truncated(model: Model) -> None:
    (prompt,) = prompts_of(model, TASKS[:1])
    writer = scripted(model, spell("    return x + x + x\n", start=len(prompt.ids)))
    ((sample,),) = generate(
        writer, [prompt], [Cell(name="c", settings=DecodeSettings(max_new_tokens=8))], n=1, batch_size=1
    )
    assert (sample.raw, sample.finish_reason) == ("    retu", "length")


def test_a_batch_shares_its_seconds(model: Model) -> None:
    drawn = draw(model, batch_size=5)
    assert len({sample.seconds for sample in drawn.values()}) == 1
    assert all(sample.seconds > 0 for sample in drawn.values())


def test_a_conversation_goes_through_the_template_with_its_answer_begun() -> None:
    chat = tiny_model("full", chat=True)
    (prompt,) = prompts_of(chat, TASKS[:1], preset="evalplus")
    text = chat.tokenizer.decode(prompt.ids, skip_special=False)
    assert text.startswith("<|im_start|>user\nPlease provide a self-contained Python script")
    assert text.endswith("passes corresponding tests:\n```python\n")


def test_prompts_that_do_not_fit_are_named_before_any_work(model: Model) -> None:
    prompts = prompts_of(model, [TASKS[0], replace(TASKS[1], prompt="x" * 500), replace(TASKS[2], prompt="y" * 505)])
    with pytest.raises(CanvasError) as error:
        check_room(prompts, [Cell(name="c", settings=DecodeSettings(max_new_tokens=20))], 512)
    assert "2 prompts do not fit with 20 new tokens into the model's context of 512: t/1, t/2" in str(error.value)
    assert "give --max-new-tokens 6 or fewer" in str(error.value)
    check_room(prompts, [Cell(name="c", settings=DecodeSettings(max_new_tokens=6))], 512)


def test_a_prompt_longer_than_the_context_needs_another_model(model: Model) -> None:
    prompts = prompts_of(model, [replace(TASKS[1], prompt="x" * 600)])
    with pytest.raises(CanvasError, match="take a model with a longer context"):
        check_room(prompts, [WARM], 512)


def test_what_the_benchmark_gives_stands_before_an_answer() -> None:
    task = replace(TASKS[0], preamble="import math\n")
    form = Rendered(kind="answer", messages=())
    program, raw = programs(task, "Sure:\n```python\ndef f(x):\n    return x\n```\n", form)
    assert program.rstrip() == "import math\ndef f(x):\n    return x"
    assert raw.startswith("import math\nSure:")


def test_a_prediction_becomes_a_program_that_returns_it() -> None:
    task = Task(task_id="p", prompt="", tests={"base": CallTests.of("answer", [()], [3])})
    program, raw = programs(task, "assert f(1) == 3", Rendered(kind="predict"))
    assert program == raw == "def answer():\n    return (\n3\n)\n"


# Infilling

GAP = Task(task_id="gap/0", prompt="a = ", suffix="\nb = 2\n", reference_completion="[1, 2]")


def fill(model: Model, length: str, *, task: Task = GAP, n: int = 1, **settings: Any) -> list[Sample]:
    cell = Cell(name="c", settings=DecodeSettings(**{"max_new_tokens": 24, **settings}))
    batches = infill(model, prompts_of(model, [task], kind="infill"), [cell], n=n, length=length)
    return [sample for batch in batches for sample in batch]


@pytest.mark.parametrize(("length", "tokens"), [("oracle", 6), ("3", 3)])
def test_a_hole_has_the_length_that_is_asked_for(model: Model, length: str, tokens: int) -> None:
    (sample,) = fill(model, length)
    assert sample.num_tokens == tokens
    assert sample.finish_reason == ""  # a hole has neither an end of its own nor a stop string
    assert sample.program == "a = " + sample.completion + "\nb = 2\n"


def test_a_hole_of_unknown_length_stays_within_the_room(model: Model) -> None:
    (sample,) = fill(model, "unknown", max_new_tokens=9)
    assert sample.num_tokens in (8, 9)


def test_an_empty_reference_still_has_a_hole(model: Model) -> None:
    (sample,) = fill(model, "oracle", task=replace(GAP, reference_completion=""))
    assert sample.num_tokens == 1


def test_infilled_samples_have_seeds_of_their_own(model: Model) -> None:
    samples = fill(model, "8", n=3, temperature=1.0)
    assert len({sample.completion for sample in samples}) == 3
    assert samples[:2] == [
        replace(s, seconds=samples[i].seconds) for i, s in enumerate(fill(model, "8", n=2, temperature=1.0))
    ]


def test_a_missing_line_is_cut_behind_its_newline(model: Model) -> None:
    (whole,) = fill(model, "12")
    stop = whole.raw[3]  # stands for the newline, which a random model may not write
    (prompt,) = prompts_of(model, [GAP], kind="infill")
    line = replace(prompt, rendered=replace(prompt.rendered, stop_strings=(stop,)))
    cell = Cell(name="c", settings=DecodeSettings(max_new_tokens=24))
    ((cut,),) = infill(model, [line], [cell], n=1, length="12")
    assert cut.raw == whole.raw
    assert cut.completion == whole.raw[: whole.raw.index(stop) + 1]
    assert cut.program == "a = " + cut.completion + "\nb = 2\n"


def test_a_gap_that_does_not_fit_is_named(model: Model) -> None:
    with pytest.raises(CanvasError, match="the task gap/0 cannot be filled in: the given text and the holes take"):
        fill(model, "oracle", task=replace(GAP, prompt="a" * 600))


def test_what_is_no_length_is_refused() -> None:
    with pytest.raises(SettingsError, match="--length 'long' is not the length of a hole; give oracle"):
        check_length("long", [WARM])
    check_length("2-8", [WARM])


def test_no_mask_is_left_in_a_sample(model: Model) -> None:
    assert MASK_ID not in model.tokenizer.encode(next(iter(draw(model).values())).raw)


def test_what_every_row_did_is_kept_before_its_samples_are_told(model: Model) -> None:
    kept: list[tuple[str, int, Sequence[Trajectory]]] = []
    batches = generate(
        model,
        prompts_of(model),
        [WARM],
        n=2,
        batch_size=4,
        keep=lambda cell, index, runs: kept.append((cell, index, runs)),
    )
    for number, batch in enumerate(batches):
        cell, index, runs = kept[-1]
        assert (cell, index, len(kept)) == ("warm", 4 * number, number + 1)
        assert [(run.sample, run.label) for run in runs] == [(sample.seed, sample.task_id) for sample in batch]
        assert [run.num_forwards for run in runs] == [sample.num_forwards for sample in batch]
    assert len(kept) == 3


@pytest.mark.parametrize("size", [2, 8])
def test_of_a_batch_that_is_drawn_again_only_what_was_missing_is_kept(model: Model, size: int) -> None:
    keys = list(draw(model, n=2, batch_size=4))
    kept: list[tuple[int, list[str]]] = []
    keep = lambda _, first, runs: kept.append((first, [run.label for run in runs]))  # noqa: E731
    list(generate(model, prompts_of(model), [WARM], n=2, batch_size=size, done=keys[:3], keep=keep))
    assert [label for _, labels in kept for label in labels] == [task for _, task, _ in keys[3:]]
    assert [first for first, _ in kept] == [3 + sum(len(labels) for _, labels in kept[:i]) for i in range(len(kept))]
