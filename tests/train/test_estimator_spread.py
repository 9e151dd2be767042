"""Scoring recorded answers under many draws of masks."""

import torch

from unmask.diffusion.rl_settings import Estimator
from unmask.train.estimator_spread import answer_means, answer_of, draw_scores, passes
from unmask.train.rollout import PackedRow, pack_rows
from unmask.trajectory import Commit, Step, Trajectory

from checkpoints import END_ID, MASK_ID, tiny_model


def run(tokens: dict[int, int], *, room: int = 4) -> Trajectory:
    steps = [Step(commits=[Commit(0, place, token, 0.9, 0.1)]) for place, token in tokens.items()]
    return Trajectory(initial_ids=[7, 8, *[None] * room], steps=steps, end_ids=[END_ID])


def test_an_answer_reaches_up_to_its_end_or_its_first_masked_place() -> None:
    ended = answer_of(run({3: END_ID, 2: 5, 5: 9}))
    assert ended == PackedRow(prompt_ids=(7, 8), answer_ids=(5, END_ID), room=4)
    assert answer_of(run({2: 5, 3: 6, 5: 9})).answer_ids == (5, 6)
    assert answer_of(run({3: 5})).answer_ids == ()


def test_packed_answers_have_masks_behind_them_and_padding_last() -> None:
    packed = pack_rows(
        [PackedRow(prompt_ids=(7, 8), answer_ids=(5, 6), room=4), PackedRow(prompt_ids=(7,), answer_ids=(9,), room=2)],
        mask_id=MASK_ID,
    )
    assert packed.ids_BL.tolist() == [[7, 8, 5, 6, MASK_ID, MASK_ID], [7, 9, MASK_ID, 0, 0, 0]]
    assert packed.is_answer_BL.int().tolist() == [[0, 0, 1, 1, 0, 0], [0, 1, 0, 0, 0, 0]]
    assert packed.document_BL.tolist() == [[0] * 6, [0] * 3 + [-1] * 3]


def test_a_draw_is_named_by_its_number_and_the_full_mask_has_no_spread() -> None:
    model = tiny_model()
    packed = pack_rows([PackedRow(prompt_ids=(7, 8), answer_ids=(5, 6, 9, END_ID), room=6)], mask_id=MASK_ID)
    coupled = Estimator(name="coupled")
    scores = draw_scores(model, packed, coupled, draws=range(4))
    assert torch.equal(scores[2:3], draw_scores(model, packed, coupled, draws=[2]))
    assert answer_means(packed, scores).std(0).item() > 0
    assert not scores[:, ~packed.is_answer_BL].any()
    assert passes(coupled, packed) == 3
    whole = draw_scores(model, packed, Estimator(name="mean_field"), draws=range(3))
    assert answer_means(packed, whole).std(0).item() == 0
