"""Rollouts: what an answer depends on, where it ends, that scoring sees what decoding saw, and what files keep."""

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from unmask.data.task import Task
from unmask.decode.canvas import Canvas, Positions
from unmask.decode.denoiser import CachedDenoiser, FullDenoiser
from unmask.decode.session import Model
from unmask.diffusion.documents import document_positions
from unmask.errors import CanvasError, DataError, SettingsError, TrajectoryError
from unmask.evaluate.prompts import Rendered
from unmask.text.chat import Message
from unmask.train.prompts import PromptItem, Prompts
from unmask.train.rollout import (
    LocalRollouts,
    Measures,
    Packed,
    Request,
    Rollout,
    RolloutSettings,
    batches_of,
    load_rollouts,
    measure,
    pack,
    requests_of,
    rollout_seed,
    save_rollouts,
    summary,
)
from unmask.train.step import Sight, Trainee, lay_out
from unmask.trajectory import Commit, Step, Trajectory, load, save

from checkpoints import END_ID, IM_END_ID, MASK_ID, VOCAB_SIZE, scripted, tiny_model

ROOM = 12
SETTINGS = RolloutSettings(num_generations=3, batch_size=4)
ENDS = {"end_ids": (END_ID, *range(225, 256))}
"""With so many, a random network ends about half of its answers."""

TEXTS = ("f", "g and h", "a longer one", "more of them", "x")


def item_of(text: str, *, prefill: str = "") -> PromptItem:
    messages = (Message("user", text),) if prefill else ()
    return PromptItem(
        source="here",
        task=Task(task_id=f"t/{text}", prompt=text),
        rendered=Rendered(kind="answer" if prefill else "completion", text=text, messages=messages, prefill=prefill),
        ids=tuple((text + prefill).encode()),
    )


PROMPTS = Prompts(items=tuple(item_of(text) for text in TEXTS), seed=1)


@pytest.fixture(scope="module")
def model() -> Model:
    return tiny_model("full", **ENDS)


@pytest.fixture(scope="module")
def rollouts(model: Model) -> list[Rollout]:
    return drawn(model)


def drawn(
    model: Model, indices: Sequence[int] = range(5), *, seed: int = 3, step: int = 0, room: int = ROOM, **changes: Any
) -> list[Rollout]:
    settings = replace(SETTINGS, **changes)
    requests = requests_of(PROMPTS, indices, num_generations=settings.num_generations)
    return LocalRollouts(settings, max_new_tokens=room).answers(model, requests, seed=seed, step=step)


def writing(model: Model, words: dict[str, list[int]], *, room: int = ROOM) -> Model:
    """The model made to answer each prompt with some ids, and then with the letter z for ever."""

    def scores(row: list[int], position: int) -> Tensor:
        prompt, place = bytes(row[: len(row) - room]).decode(), position - (len(row) - room)
        out = torch.zeros(VOCAB_SIZE)
        out[words[prompt][place] if place < len(words[prompt]) else ord("z")] = 50.0
        return out

    return scripted(model, scores)


# What an answer depends on


def test_answers_come_in_the_order_of_the_requests_each_to_its_prompt(rollouts: list[Rollout]) -> None:
    assert [(one.index, one.generation) for one in rollouts] == [(i, g) for i in range(5) for g in range(3)]
    for rollout in rollouts:
        assert rollout.item is PROMPTS.at(rollout.index)
        assert rollout.trajectory.initial_ids == [*rollout.prompt_ids, *[None] * ROOM]
        assert (rollout.max_new_tokens, rollout.prompt_ids) == (ROOM, rollout.item.ids)


def test_an_answer_depends_neither_on_its_batch_nor_on_the_other_requests(
    model: Model, rollouts: list[Rollout]
) -> None:
    whole = {(one.index, one.generation): one for one in rollouts}
    for indices, changes in (
        ([1, 4], {"batch_size": 1}),
        (range(5), {"batch_size": 15}),
        ([3], {"num_generations": 2}),
    ):
        for one in drawn(model, indices, **changes):
            assert one.answer_ids == whole[one.index, one.generation].answer_ids
            assert one.committed_at == whole[one.index, one.generation].committed_at
    request = Request(item=PROMPTS.at(7), index=7, generation=5)
    (alone,) = LocalRollouts(SETTINGS, max_new_tokens=ROOM).answers(model, [request], seed=3, step=0)
    among = drawn(model, [2, 7, 4], num_generations=6)[6 + 5]
    assert alone.answer_ids == among.answer_ids


def test_generations_prompts_steps_and_seeds_have_random_numbers_of_their_own(model: Model) -> None:
    first = drawn(model, [0])
    again = next(index for index in range(5, 10) if PROMPTS.at(index) is PROMPTS.at(0))
    others = (drawn(model, [again]), drawn(model, [0], step=1), drawn(model, [0], seed=4))
    answers = [one.answer_ids for rollouts in (first, *others) for one in rollouts]
    assert len(set(answers)) == len(answers) == 12
    seeds = {rollout_seed(s, t, i, g) for s in range(2) for t in range(2) for i in range(2) for g in range(2)}
    assert len(seeds) == 16
    assert drawn(model, [0]) == first


def test_no_global_random_numbers_are_used(model: Model) -> None:
    torch.manual_seed(0)
    before = torch.random.get_rng_state()
    drawn(model, [0])
    assert torch.equal(torch.random.get_rng_state(), before)


def test_ranks_that_take_every_second_batch_decode_the_batches_of_one_process(model: Model) -> None:
    requests = requests_of(PROMPTS, range(5), num_generations=3)
    batches = batches_of(requests, 4)
    assert [len(batch) for batch in batches] == [4, 4, 4, 3]
    lengths = [len(request.item.ids) for batch in batches for request in batch]
    assert lengths == sorted(lengths, reverse=True)
    for rank in range(2):
        mine = batches[rank::2]
        assert batches_of([request for batch in mine for request in batch], 4) == mine


# Where an answer ends


def test_an_answer_ends_with_its_first_end_token_whichever_that_is(model: Model) -> None:
    spoken = {
        "f": [*b"ab", IM_END_ID],
        "g and h": [*b"abc", END_ID, *b"de", IM_END_ID],
        "a longer one": [IM_END_ID, *b"q"],
        "more of them": [*b"abcdefghijk", END_ID],
        "x": [*b"never"],
    }
    rollouts = drawn(writing(model, spoken), num_generations=1, policy="left_to_right", temperature_role="content")
    by_text = {one.item.text: one for one in rollouts}
    for text, ids in {**spoken, "g and h": spoken["g and h"][:4], "a longer one": spoken["a longer one"][:1]}.items():
        one = by_text[text]
        has_ended = text != "x"
        assert list(one.answer_ids) == (ids if has_ended else [*ids, *[ord("z")] * (ROOM - len(ids))])
        assert one.has_ended == has_ended
        assert one.text == bytes(one.answer_ids[: len(one.answer_ids) - has_ended]).decode()
        assert one.committed_at == tuple(range(len(one.answer_ids)))
        assert one.num_forwards == len(one.answer_ids)
        assert one.wasted_tokens == 0
        assert one.trajectory.finish_reason == ("stop" if has_ended else "length")


def test_the_text_begins_with_what_the_model_was_given_and_stops_before_the_end(model: Model) -> None:
    item = item_of("say", prefill="Sure: ")
    spoken = {"saySure: ": [*b"```\nx\n```", END_ID]}
    requests = [Request(item=item, index=0, generation=0)]
    engine = LocalRollouts(RolloutSettings(), max_new_tokens=ROOM)
    (rollout,) = engine.answers(writing(model, spoken), requests, seed=0, step=0)
    assert rollout.text == "Sure: ```\nx\n```"
    assert (item.prompt, item.prefill) == ([{"role": "user", "content": "say"}], "Sure: ")


def test_tokens_behind_the_end_are_no_part_of_the_answer_and_are_counted(tmp_path: Path) -> None:
    item = item_of("ab")
    steps = [
        Step(commits=[Commit(0, place, token, 0.5, 0.1) for place, token in commits])
        for commits in ([(6, 90), (3, 70)], [(2, 65)], [], [(4, END_ID)])
    ]
    record = Trajectory(
        initial_ids=[97, 98, *[None] * 6], steps=steps, end_ids=[END_ID], num_forwards=3, finish_reason="stop"
    )
    rollout = reloaded(record, item, tmp_path / "one.jsonl")
    assert rollout.answer_ids == (65, 70, END_ID)
    assert rollout.committed_at == (1, 0, 3)
    assert rollout.order == [1, 0, 2]
    assert (rollout.wasted_tokens, rollout.num_forwards, rollout.max_new_tokens, rollout.has_ended) == (1, 3, 6, True)
    assert measure(rollout) == Measures(
        num_tokens=3, has_ended=True, num_forwards=3, wasted_tokens=1, local_ar_ness=0.0, global_ar_ness=2 / 3
    )


def reloaded(record: Trajectory, item: PromptItem, path: Path) -> Rollout:
    """The rollout that a record makes."""
    record.settings["rollout"] = {"task_id": item.task.task_id, "index": 0, "generation": 0, "text": "?"}
    save(path, [record])
    (rollout,) = load_rollouts(path, Prompts(items=(item,), seed=0))
    return rollout


def test_an_end_token_inside_the_prompt_ends_nothing(model: Model) -> None:
    item = replace(item_of("ab"), ids=(97, IM_END_ID, 98))
    requests = [Request(item=item, index=0, generation=0)]
    (rollout,) = LocalRollouts(RolloutSettings(), max_new_tokens=4).answers(model, requests, seed=0, step=0)
    assert len(rollout.answer_ids) >= 1
    packed = pack([rollout], mask_id=MASK_ID)
    assert packed.is_prompt_BL[0].tolist() == [True] * 3 + [False] * 4


def test_a_prompt_beyond_the_context_is_refused_by_the_canvas(model: Model) -> None:
    with pytest.raises(CanvasError, match=r"the canvas has 5\d\d positions and the model has 512; shorten the prompt"):
        drawn(model, [0], room=512)


# As tensors


def test_packed_rows_hold_prompt_answer_and_tail_and_nothing_else(rollouts: list[Rollout]) -> None:
    packed = pack(rollouts, mask_id=MASK_ID)
    assert {one.has_ended for one in rollouts} == {True, False}
    assert packed.ids_BL.shape == (15, max(len(one.prompt_ids) for one in rollouts) + ROOM)
    for row, one in enumerate(rollouts):
        first, stop, end = len(one.prompt_ids), len(one.prompt_ids) + len(one.answer_ids), len(one.prompt_ids) + ROOM
        rest = packed.ids_BL.shape[1] - end
        assert packed.ids_BL[row].tolist() == [
            *one.prompt_ids,
            *one.answer_ids,
            *[MASK_ID] * (end - stop),
            *[0] * rest,
        ]
        assert packed.is_prompt_BL[row].nonzero().flatten().tolist() == list(range(first))
        assert packed.is_answer_BL[row].nonzero().flatten().tolist() == list(range(first, stop))
        assert packed.document_BL[row].tolist() == [0] * end + [-1] * rest
        assert packed.committed_at_BL[row].tolist() == (
            [-1] * first + list(one.committed_at) + [-1] * (packed.ids_BL.shape[1] - stop)
        )
    cut = pack(rollouts, mask_id=MASK_ID, tail="cut")
    assert cut.ids_BL.shape[1] == max(len(one.prompt_ids) + len(one.answer_ids) for one in rollouts)
    assert torch.equal(cut.document_BL >= 0, cut.is_prompt_BL | cut.is_answer_BL)
    assert int(cut.is_answer_BL.sum()) == int(packed.is_answer_BL.sum())


def scored(model: Model, packed: Packed, is_masked_BL: Tensor, is_predicted_BL: Tensor) -> dict[tuple[int, int], float]:
    """log p of some hidden tokens, as training's forward has it: (row, column) → nats."""
    config = model.backbone.config
    inputs = lay_out(packed.ids_BL, packed.document_BL, is_masked_BL, is_predicted_BL, config=config)
    kind: Any = config.attention
    sight = Sight(kind=kind, document_BL=packed.document_BL, block_length=config.block_length or 1)
    with torch.no_grad():
        nll_M = Trainee(model.backbone)(
            inputs.ids_BT, inputs.positions_BT, sight.mask(), inputs.row_M, inputs.column_M, inputs.target_M
        )
    places = zip(inputs.row_M.tolist(), inputs.place_M.tolist(), strict=True)
    return dict(zip(places, (-nll_M).tolist(), strict=True))


def decoded(
    model: Model,
    rollouts: Sequence[Rollout],
    states: Sequence[list[int | None]],
    places: Sequence[int],
    *,
    suppressed: Sequence[int] = (),
) -> list[float]:
    """log p of one token of each row, as decoding has it for rows in these states, left-padded in one canvas."""
    backbone = model.backbone
    canvas = Canvas.from_rows(states, mask_id=MASK_ID, align=backbone.config.block_length or 1)
    where = Positions(torch.arange(len(states)), canvas.start_B + torch.tensor(places))
    denoiser = FullDenoiser(backbone) if backbone.config.attention == "full" else CachedDenoiser(backbone)
    logits_MV = torch.cat(list(denoiser.logits(canvas, where)))
    logits_MV[:, [MASK_ID, *suppressed]] = -torch.inf
    return [
        float(logits_V.log_softmax(-1)[[*one.prompt_ids, *one.answer_ids][place]])
        for one, logits_V, place in zip(rollouts, logits_MV, places, strict=True)
    ]


def is_unspoilt(one: Rollout) -> bool:
    """Whether nothing was committed behind the end, so that the tail was masked throughout."""
    return one.wasted_tokens == 0 and len(one.answer_ids) > 1


@pytest.mark.parametrize("shift", [True, False])
def test_scoring_a_state_of_a_rollout_gives_what_decoding_was_told_there(shift: bool) -> None:
    model = tiny_model("full", shift_logits=shift, **ENDS)
    rollouts = [one for one in drawn(model, num_generations=4) if is_unspoilt(one)]
    assert len({len(one.prompt_ids) for one in rollouts}) > 2
    assert {one.has_ended for one in rollouts} == {True, False}
    packed = pack(rollouts, mask_id=MASK_ID)
    states, places = [], []
    is_masked_BL = ~packed.is_prompt_BL & ~packed.is_answer_BL
    is_predicted_BL = torch.zeros_like(is_masked_BL)
    for row, one in enumerate(rollouts):
        number = max(0, len(one.trajectory.steps) - (1, 3, ROOM)[row % 3])  # the last state, an earlier one, the first
        state = one.trajectory.ids_at(number)
        (commit,) = one.trajectory.steps[number].commits
        states.append(state)
        places.append(commit.position)
        is_masked_BL[row, : len(state)] = torch.tensor([token is None for token in state])
        is_predicted_BL[row, commit.position] = True
    assert bool((~packed.is_answer_BL[is_masked_BL]).any()), "a tail is among what is hidden"
    found = scored(model, packed, is_masked_BL, is_predicted_BL)
    wanted = decoded(model, rollouts, states, places)
    assert [found[row, place] for row, place in enumerate(places)] == pytest.approx(wanted, abs=1e-5)
    positions_BL = document_positions(packed.document_BL)
    assert all(int(positions_BL[row, place]) == place for row, place in enumerate(places)), "as on the canvas"


def test_the_states_of_a_trajectory_are_those_that_the_recorded_confidence_is_of(model: Model) -> None:
    rollouts = [one for one in drawn(model, [0, 2, 3], temperature=1.0) if is_unspoilt(one)]
    for number in (0, 1):
        commits = [one.trajectory.steps[number].commits[0] for one in rollouts]
        states = [one.trajectory.ids_at(number) for one in rollouts]
        places = [commit.position for commit in commits]
        wanted = decoded(model, rollouts, states, places, suppressed=model.undefined_ids)
        assert [math.exp(value) for value in wanted] == pytest.approx([c.confidence for c in commits], abs=1e-5)


@pytest.mark.parametrize("shift", [True, False])
def test_scoring_under_block_attention_gives_what_decoding_was_told(shift: bool) -> None:
    model = tiny_model("block", shift_logits=shift, end_ids=(END_ID, 240, 241, 242))
    rollouts = [one for one in drawn(model, num_generations=4, room=20) if is_unspoilt(one)]
    assert len({len(one.prompt_ids) % 8 for one in rollouts}) > 2, "answers begin at different places of their blocks"
    packed = pack(rollouts, mask_id=MASK_ID)
    blocks: set[int] = set()
    for number in range(20):
        now = [one for one in rollouts if number < len(one.trajectory.steps)]
        if not now:
            break
        states = [one.trajectory.ids_at(number) for one in now]
        places = [one.trajectory.steps[number].commits[0].position for one in now]
        rows = [rollouts.index(one) for one in now]
        # later blocks are not there yet for a noisy row, whatever the packed one holds
        is_masked_BL = torch.zeros_like(packed.is_answer_BL)
        is_predicted_BL = torch.zeros_like(is_masked_BL)
        for row, state, place in zip(rows, states, places, strict=True):
            is_masked_BL[row, : len(state)] = torch.tensor([token is None for token in state])
            is_predicted_BL[row, place] = True
            blocks.add(place // 8)
        found = scored(model, packed, is_masked_BL, is_predicted_BL)
        wanted = decoded(model, now, states, places)
        assert [found[key] for key in zip(rows, places, strict=True)] == pytest.approx(wanted, abs=1e-5)
    assert len(blocks) > 2


def test_the_width_of_the_batch_does_not_change_a_score(model: Model, rollouts: list[Rollout]) -> None:
    shortest = min(rollouts, key=lambda one: len(one.prompt_ids))
    alone, among = pack([shortest], mask_id=MASK_ID), pack([shortest, *rollouts], mask_id=MASK_ID)
    assert alone.ids_BL.shape[1] < among.ids_BL.shape[1]
    found = [scored(model, packed, hidden(packed), packed.is_answer_BL) for packed in (alone, among)]
    for place, value in found[0].items():
        assert found[1][place] == pytest.approx(value, abs=1e-5)


def hidden(packed: Packed) -> Tensor:
    return ~packed.is_prompt_BL & (packed.document_BL >= 0)


def test_a_cut_tail_is_scored_differently_from_the_canvas(model: Model, rollouts: list[Rollout]) -> None:
    one = next(one for one in rollouts if one.has_ended and len(one.answer_ids) < ROOM - 2)
    whole, cut = (pack([one], mask_id=MASK_ID, tail=tail) for tail in ("masked", "cut"))
    a, b = (scored(model, packed, hidden(packed), packed.is_answer_BL) for packed in (whole, cut))
    assert a.keys() == b.keys()
    assert max(abs(a[place] - b[place]) for place in a) > 1e-3


def test_a_causal_model_rolls_out_and_is_packed_without_a_mask_id() -> None:
    model = tiny_model("causal")
    (one, *_) = drawn(model, [0], room=5)
    assert one.committed_at == tuple(range(len(one.answer_ids)))
    packed = pack([one], mask_id=None)
    assert packed.ids_BL[0, : len(one.prompt_ids) + len(one.answer_ids)].tolist() == [*one.prompt_ids, *one.answer_ids]


# As a file


@pytest.mark.parametrize("kind", ["full", "block"])
def test_a_file_gives_the_very_rollouts_back(tmp_path: Path, kind: str) -> None:
    rollouts = drawn(tiny_model(kind, **ENDS), [3, 8, 1])
    save_rollouts(tmp_path / "rollouts.jsonl", rollouts)
    assert load_rollouts(tmp_path / "rollouts.jsonl", PROMPTS) == rollouts
    assert [path.name for path in tmp_path.iterdir()] == ["rollouts.jsonl"]
    assert [run.steps for run in load(tmp_path / "rollouts.jsonl")] == [one.trajectory.steps for one in rollouts]


def test_texts_that_are_no_unicode_survive_the_file(model: Model, tmp_path: Path) -> None:
    rollouts = [replace(one, text="a\udcffb\x00") for one in drawn(model, [0])]
    save_rollouts(tmp_path / "rollouts.jsonl", rollouts)
    assert load_rollouts(tmp_path / "rollouts.jsonl", PROMPTS) == rollouts


def test_rollouts_of_other_prompts_are_refused(model: Model, tmp_path: Path) -> None:
    path = tmp_path / "rollouts.jsonl"
    save_rollouts(path, drawn(model, [0]))
    for other in (
        replace(PROMPTS, seed=2),
        replace(PROMPTS, items=tuple(replace(i, ids=(1, 2)) for i in PROMPTS.items)),
    ):
        with pytest.raises(
            DataError, match=r"line 1 answers t/.*, and prompt 0 of this run is t/.* or has other words; "
        ):
            load_rollouts(path, other)
    save(path, [one.trajectory for one in drawn(model, [0])])
    with pytest.raises(DataError, match=r"line 1 is a trajectory and no rollout; give a file that the trainer wrote"):
        load_rollouts(path, PROMPTS)
    path.write_text(json.dumps({"format": "unmask.trajectory"})[:-4])
    with pytest.raises(TrajectoryError, match=r"line 1 is not JSON"):
        load_rollouts(path, PROMPTS)


# As numbers


def measures(num_tokens: int, *, has_ended: bool = True, **changes: Any) -> Measures:
    given = {"num_forwards": num_tokens, "wasted_tokens": 0, "local_ar_ness": 0.5, "global_ar_ness": 0.25, **changes}
    return Measures(num_tokens=num_tokens, has_ended=has_ended, **given)


def test_the_summary_is_of_all_answers_and_of_those_that_ended() -> None:
    found = summary(
        [
            measures(4, num_forwards=2, wasted_tokens=3, local_ar_ness=1.0),
            measures(6, global_ar_ness=0.75),
            measures(12, has_ended=False, num_forwards=4),
        ]
    )
    assert found == {
        "completions/mean_length": pytest.approx(22 / 3),
        "completions/min_length": 4,
        "completions/max_length": 12,
        "completions/mean_terminated_length": 5,
        "completions/min_terminated_length": 4,
        "completions/max_terminated_length": 6,
        "completions/clipped_ratio": pytest.approx(1 / 3),
        "rollout/end_share": pytest.approx(2 / 3),
        "rollout/tokens_per_forward": pytest.approx(22 / 12),
        "rollout/wasted_tokens": 1,
        "rollout/local_ar_ness@1": pytest.approx(2 / 3),
        "rollout/global_ar_ness@1": pytest.approx(1.25 / 3),
    }


def test_a_summary_of_answers_that_never_end_has_no_lengths_of_ended_ones() -> None:
    found = summary([measures(1, has_ended=False, local_ar_ness=math.nan)])
    assert math.isnan(found["completions/mean_terminated_length"])
    assert math.isnan(found["rollout/local_ar_ness@1"])
    assert (found["completions/clipped_ratio"], found["completions/max_length"]) == (1, 1)
    assert all(math.isnan(value) for value in summary([]).values())


def test_fewer_steps_commit_more_tokens_per_forward(model: Model, rollouts: list[Rollout]) -> None:
    slow = summary([measure(one) for one in rollouts])
    fast = summary([measure(one) for one in drawn(model, steps=ROOM // 3)])
    assert slow["rollout/tokens_per_forward"] <= 1
    assert fast["rollout/tokens_per_forward"] > 1.5


def test_left_to_right_rollouts_have_an_ar_ness_of_one(model: Model) -> None:
    found = summary([measure(one) for one in drawn(model, policy="left_to_right", temperature_role="content")])
    assert (found["rollout/local_ar_ness@1"], found["rollout/global_ar_ness@1"]) == (1, 1)
    assert found["rollout/wasted_tokens"] == 0


# Settings


def test_the_defaults_are_valid_and_decode_as_the_paper_does() -> None:
    decoding = RolloutSettings().decoding(max_new_tokens=256, seed=5)
    assert (decoding.policy, decoding.temperature, decoding.temperature_role) == ("entropy", 1.2, "both")
    assert (decoding.top_p, decoding.steps, decoding.max_new_tokens, decoding.seed) == (None, None, 256, 5)


def test_every_setting_of_the_loop_reaches_it() -> None:
    given: dict[str, Any] = {
        "temperature": 0.7,
        "temperature_role": "order",  # greedy tokens; with a temperature of the policy their order is drawn
        "top_p": 0.9,
        "steps": 64,
        "block_length": 32,
        "policy_temperature": 0.3,
    }
    decoding = RolloutSettings(**given).decoding(max_new_tokens=100, seed=0)
    assert {name: getattr(decoding, name) for name in given} == given
    assert RolloutSettings(policy="threshold", threshold=0.8).decoding(max_new_tokens=1, seed=0).threshold == 0.8
    assert RolloutSettings(policy="factor", factor=0.8).decoding(max_new_tokens=1, seed=0).factor == 0.8


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"num_generations": 0}, r"rollout.num_generations=0 must be at least 1"),
        ({"batch_size": 0}, r"rollout.batch_size=0 must be at least 1"),
        ({"tail": "open"}, r"rollout.tail=open is not known; it is masked or cut"),
        ({"temperature": 0.0}, r"rollout.temperature=0.0 .* draws nothing at random, so all 10 answers .* the same"),
        ({"temperature_role": "order"}, r"temperature_role=order draws nothing at random, .* that acts on the tokens"),
        ({"temperature": -1.0}, r"rollout.temperature -1.0 is not a temperature"),
        ({"top_p": 1.5}, r"rollout.top_p 1.5 lies outside \(0, 1\]; 1 keeps everything"),
        ({"policy": "entropie"}, r"rollout.policy 'entropie' is not known; did you mean entropy or entropy_bound"),
        ({"threshold": 0.9}, r"rollout.threshold 0.9 has no effect .*give `rollout.policy threshold` or leave rollout"),
        ({"steps": 0}, r"rollout.steps 0 is not a count"),
        ({"policy_temperature": 1.0, "policy": "random"}, r"rollout.policy_temperature 1.0 has no effect"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        RolloutSettings(**settings)
