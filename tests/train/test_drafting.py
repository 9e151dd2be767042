"""What a drafter is trained on is what it meets when it drafts, and nothing but the drafter learns."""

import copy

import pytest
import torch

from unmask.decode.canvas import Canvas
from unmask.decode.draft_plan import Plan
from unmask.decode.speculative import Speculator
from unmask.diffusion.draft_blocks import Blocks, tile_blocks
from unmask.model.cache import Behind, Kept, Span
from unmask.model.drafter import Drafter, DraftHead
from unmask.model.gate import GatedLinear
from unmask.model.lora import LoraSettings, add_lora, lora_layers, without_lora
from unmask.train.drafting import DraftTrainee, chain

from doubles import tiny_backbone, tiny_config

CONFIG = tiny_config(mask_id=60)
WORDS = torch.arange(0, 50)


def trainee(*, seed=5):
    backbone = tiny_backbone(CONFIG)
    add_lora(backbone, LoraSettings(rank=2, alpha=4.0), seed=0)
    generator = torch.Generator().manual_seed(seed)
    for _, lora in lora_layers(backbone):
        lora.lora_B.weight.data = 0.3 * torch.randn(lora.lora_B.weight.shape, generator=generator)
    backbone.mask_row = torch.nn.Parameter(torch.randn(32, generator=generator))
    head = DraftHead(32, 8)
    head.up.weight.data = 0.3 * torch.randn(head.up.weight.shape, generator=generator)
    return DraftTrainee(backbone, head, WORDS)


def gated(model):
    """The same network as decoding has it."""
    backbone = copy.deepcopy(model.backbone)
    for name, lora in list(lora_layers(backbone)):
        plain = torch.nn.Linear(lora.in_features, lora.out_features, bias=lora.bias is not None)
        plain.weight, plain.bias = lora.weight, lora.bias
        owner, _, last = name.rpartition(".")
        A, B = lora.lora_A.weight.detach(), lora.scale * lora.lora_B.weight.detach()
        setattr(backbone.get_submodule(owner), last, GatedLinear(plain, A, B))
    return backbone.requires_grad_(False)


def batch(rows, prompt, *, block_length=3, revealed=0.0):
    ids_BL = torch.tensor(rows)
    is_answer_BL = torch.arange(ids_BL.shape[1]).expand(ids_BL.shape) >= prompt
    document_BL = torch.zeros_like(ids_BL)
    blocks = tile_blocks(
        is_answer_BL, document_BL, torch.arange(len(rows)), block_length=block_length, revealed=revealed, seed=0
    )
    return ids_BL, document_BL, blocks


IDS = [[int(x) for x in torch.randint(0, 50, (16,), generator=torch.Generator().manual_seed(n))] for n in range(3)]


@torch.no_grad()
def test_the_noisy_pass_is_what_the_speculator_computes():
    """A draft of three tokens behind column 7, and a block of masks behind each of its tokens."""
    model = trainee()
    rows_WD = model.backbone.lm_head.weight[WORDS]
    drafter = Drafter(model.head, model.backbone.embed_tokens.weight, rows_WD, WORDS, block_length=3)
    speculator = Speculator(gated(model), drafter)
    row, settled = IDS[0], 7
    canvas = Canvas.from_rows([[*row[: settled + 1], *[None] * 8]], mask_id=60)
    speculator.begin(canvas)
    state = speculator._rows[0]
    state.draft, state.plan = row[settled + 1 : settled + 4], Plan(3, (3, 2, 3, 1))
    hidden_ATD, block_at = speculator._forward(canvas, [0], [state])
    for i, masks in enumerate(state.plan.masks):
        anchor = settled + i
        column_BN = torch.arange(anchor + 1, anchor + 1 + masks)[None]
        blocks = Blocks(
            column_BN=column_BN,
            anchor_BN=torch.full_like(column_BN, anchor),
            is_real_BN=torch.ones_like(column_BN, dtype=torch.bool),
            is_shown_BN=torch.zeros_like(column_BN, dtype=torch.bool),
        )
        clean_MD, noisy_MD = model.hidden(torch.tensor([row]), torch.zeros(1, 16).long(), blocks)
        begin = block_at[0][i]
        torch.testing.assert_close(noisy_MD, hidden_ATD[0, begin : begin + masks], atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(clean_MD[0], model_hidden(model, row)[anchor + 1], atol=1e-4, rtol=1e-4)


def model_hidden(model, row):
    plain = tiny_backbone(CONFIG)
    ids = torch.tensor([row])
    mask = torch.ones(len(row), len(row), dtype=torch.bool).tril()[None, None]
    return plain(ids, torch.arange(len(row))[None], attn_mask=mask)[0]


def test_only_the_drafter_learns():
    model = trainee()
    found = model(*batch(IDS, 4))
    (found.hard_M.sum() + found.soft_M.sum()).backward()
    learns = {name for name, p in model.named_parameters() if p.grad is not None and float(p.grad.abs().sum()) > 0}
    assert learns == {
        name
        for name, _ in model.named_parameters()
        if "lora" in name or name.startswith("head") or name == "backbone.mask_row"
    }


def test_a_later_token_changes_no_earlier_loss():
    model = trainee()
    ids_BL, document_BL, blocks = batch(IDS[:1], 4)
    before = model(ids_BL, document_BL, blocks)
    changed = ids_BL.clone()
    changed[0, 10] = (changed[0, 10] + 1) % 50
    after = model(changed, document_BL, blocks)
    columns = blocks.column_BN[0]
    early = columns + 1 < 10  # what is predicted stands before the change
    assert bool(early.any())
    torch.testing.assert_close(after.soft_M[early], before.soft_M[early])
    at = columns == 9  # predicts the changed token; its own block does not see it
    torch.testing.assert_close(after.soft_M[at], before.soft_M[at])
    assert not torch.allclose(after.hard_M[at], before.hard_M[at])


@torch.no_grad()
def test_losses_by_hand():
    model = trainee()
    ids_BL, document_BL, blocks = batch(IDS, 4)
    found = model(ids_BL, document_BL, blocks)
    clean_MD, noisy_MD = model.hidden(ids_BL, document_BL, blocks)
    head_WD = model.backbone.lm_head.weight[WORDS]
    m = 0
    for row in range(3):
        for n in range(blocks.column_BN.shape[1]):
            if not blocks.is_real_BN[row, n]:
                continue
            column = int(blocks.column_BN[row, n])
            shown, following = int(ids_BL[row, column]), int(ids_BL[row, column + 1])
            told = model.head(noisy_MD[m], model.backbone.embed_tokens.weight[shown])
            logq = (head_WD @ told).log_softmax(-1)
            parent = (head_WD @ clean_MD[m]).softmax(-1)
            assert float(found.hard_M[m]) == pytest.approx(-float(logq[following]), abs=1e-4)
            assert float(found.soft_M[m]) == pytest.approx(-float((parent * logq).sum()), abs=1e-4)
            best = int((model.backbone.lm_head.weight @ clean_MD[m]).argmax())
            assert bool(found.agrees_M[m]) == (int(logq.argmax()) == best)
            m += 1
    assert m == len(found.hard_M)


def test_while_training_a_draft_is_compared_with_the_best_of_the_words_alone():
    model = trainee()
    ids_BL, document_BL, blocks = batch(IDS, 4)
    found = model(ids_BL, document_BL, blocks)
    with torch.no_grad():
        exact = model(ids_BL, document_BL, blocks)
        clean_MD, noisy_MD = model.hidden(ids_BL, document_BL, blocks)
        told_MD = model.backbone.embed_tokens(ids_BL.gather(1, blocks.column_BN)[blocks.is_asked_BN()])
        scores_MW = model.head(noisy_MD, told_MD) @ model.backbone.lm_head.weight[WORDS].T
        best_M = (clean_MD @ model.backbone.lm_head.weight[WORDS].T).argmax(-1)
        is_word_M = torch.isin((clean_MD @ model.backbone.lm_head.weight.T).argmax(-1), torch.as_tensor(WORDS))
    assert torch.equal(found.agrees_M, scores_MW.argmax(-1) == best_M)
    assert 0 < int(is_word_M.sum()) < len(is_word_M)
    assert torch.equal(exact.agrees_M, found.agrees_M & is_word_M)


def alone(model, row, anchor, inputs):
    """One block behind one row's columns up to its anchor, with nothing else in the forward; `inputs` by column."""
    text, position = torch.tensor([row[: anchor + 1]]), torch.arange(len(row))[None]
    kept, nowhere = Kept(), Span(0, 0)
    causal = torch.ones(1, 1, anchor + 1, anchor + 1, dtype=torch.bool).tril()
    with without_lora(model.backbone):
        model.backbone(text, position[:, : anchor + 1], attn_mask=causal, cache=kept, window=nowhere)
    return model.backbone(
        torch.tensor([[inputs[column] for column in sorted(inputs)]]),
        torch.tensor([sorted(inputs)]),
        attn_mask=None,
        cache=Behind(kept),
        window=nowhere,
        gate=0,
    )[0]


@torch.no_grad()
def test_a_shown_token_is_read_as_itself_and_is_not_asked_for():
    """Every block of a batch on its own, place by place."""
    model = trainee()
    ids_BL, document_BL, blocks = batch(IDS, 4, block_length=4, revealed=0.6)
    assert bool(blocks.is_shown_BN.any())
    found = model(ids_BL, document_BL, blocks)
    clean_MD, noisy_MD = model.hidden(ids_BL, document_BL, blocks)
    m = 0
    for row in range(3):
        real = [n for n in range(blocks.column_BN.shape[1]) if blocks.is_real_BN[row, n]]
        for n in real:
            column, anchor = int(blocks.column_BN[row, n]), int(blocks.anchor_BN[row, n])
            own = [k for k in real if int(blocks.anchor_BN[row, k]) == anchor]
            shown = {int(blocks.column_BN[row, k]) for k in own if blocks.is_shown_BN[row, k]}
            if column + 1 in shown:
                continue
            inputs = {c: IDS[row][c] if c in shown else 60 for c in (int(blocks.column_BN[row, k]) for k in own)}
            hidden_JD = alone(model, IDS[row], anchor, inputs)
            torch.testing.assert_close(noisy_MD[m], hidden_JD[column - anchor - 1], atol=1e-4, rtol=1e-4)
            torch.testing.assert_close(clean_MD[m], model_hidden(model, IDS[row])[column], atol=1e-4, rtol=1e-4)
            assert int(found.distance_M[m]) == column - anchor
            assert bool(found.is_closed_M[m]) == (not shown)
            m += 1
    assert m == len(found.hard_M) < int(blocks.is_real_BN.sum())


@torch.no_grad()
def test_blocks_that_show_nothing_are_not_moved_by_those_that_do():
    model = trainee()
    plain, some = (model(*batch(IDS, 4, block_length=4, revealed=share)) for share in (0.0, 0.6))
    assert bool(plain.is_closed_M.all())
    blocks = batch(IDS, 4, block_length=4, revealed=0.6)[2]
    is_closed_M = blocks.is_closed_BN()[blocks.is_real_BN]
    for name in ("hard_M", "soft_M", "blind_M"):
        torch.testing.assert_close(getattr(some, name)[some.is_closed_M], getattr(plain, name)[is_closed_M])


@torch.no_grad()
def test_a_token_that_is_no_word_has_no_hard_loss():
    model = trainee()
    rows = [[*IDS[0][:9], 55, *IDS[0][10:]]]
    found = model(*batch(rows, 4))
    assert int((~found.is_word_M).sum()) == 1
    assert float(found.hard_M[~found.is_word_M]) == 0
    assert float(found.soft_M[~found.is_word_M]) > 0


def test_without_lora_the_network_is_the_parent_and_comes_back():
    model = trainee()
    ids, positions = torch.tensor([IDS[0]]), torch.arange(16)[None]
    adapted = model.backbone(ids, positions)
    with without_lora(model.backbone):
        assert torch.equal(model.backbone(ids, positions), tiny_backbone(CONFIG)(ids, positions))
    assert torch.equal(model.backbone(ids, positions), adapted)


def test_the_loss_falls_on_a_text_that_repeats():
    model = trainee()
    rows = [[1, 2, 3, 4] * 4]
    learnt = [p for n, p in model.named_parameters() if "lora" in n or "head." in n or n == "backbone.mask_row"]
    optimiser = torch.optim.Adam([p for p in learnt if p.requires_grad], lr=0.02)
    losses = []
    for step in range(30):
        ids_BL, document_BL, _ = batch(rows, 2)
        is_answer_BL = torch.arange(16)[None] >= 2
        blocks = tile_blocks(is_answer_BL, document_BL, torch.tensor([step]), block_length=3, seed=0)
        loss = model(ids_BL, document_BL, blocks).hard_M.mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(float(loss.detach()))
    assert sum(losses[-5:]) < 0.2 * sum(losses[:5])


def test_the_tokens_of_a_round_by_hand():
    assert chain([0.75, 0.5, 0.0]) == pytest.approx(1 + 0.75 + 0.375)
