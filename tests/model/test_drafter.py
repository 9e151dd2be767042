"""How a draft is read: each place told the token before it, among the candidates that its untold scores name."""

import pytest
import torch

import unmask.model.drafter as module
from unmask.model.drafter import Drafter, DraftHead

WORDS, WIDTH = torch.tensor([5, 0, 9, 3, 7, 2, 11, 8, 1, 4]), 6


def random_drafter() -> Drafter:
    generator = torch.Generator().manual_seed(0)
    head = DraftHead(WIDTH, 4)
    head.up.weight.data = torch.randn(head.up.weight.shape, generator=generator)
    embedding_VD = torch.randn(12, WIDTH, generator=generator)
    return Drafter(head, embedding_VD, torch.randn(len(WORDS), WIDTH, generator=generator), WORDS, block_length=5)


@torch.no_grad()
@pytest.mark.parametrize("candidates", [1, 3, 128])
def test_a_draft_is_the_best_candidate_after_the_one_before_it(
    monkeypatch: pytest.MonkeyPatch, candidates: int
) -> None:
    monkeypatch.setattr(module, "CANDIDATES", candidates)
    drafter = random_drafter()
    hidden_AJD = torch.randn(3, 5, WIDTH, generator=torch.Generator().manual_seed(1))
    known_A = torch.tensor([6, 0, 3])
    tokens_AJ, sureties_AJ = drafter.read(hidden_AJD, known_A)
    words = WORDS.tolist()
    for a in range(3):
        previous = int(known_A[a])
        for j in range(5):
            untold = (drafter.rows_WD @ hidden_AJD[a, j]).tolist()
            near = sorted(range(len(words)), key=lambda w: -untold[w])[:candidates]
            told = drafter.scores(hidden_AJD[a, j][None], torch.tensor([previous]))[0]
            best = max(near, key=lambda w: float(told[w]))
            assert int(tokens_AJ[a, j]) == words[best]
            assert float(sureties_AJ[a, j]) == pytest.approx(float(told[near].softmax(0).max()), abs=1e-5)
            previous = words[best]


@torch.no_grad()
def test_a_block_of_no_masks_is_an_empty_draft() -> None:
    tokens_AJ, sureties_AJ = random_drafter().read(torch.zeros(2, 0, WIDTH), torch.tensor([1, 2]))
    assert tokens_AJ.shape == sureties_AJ.shape == (2, 0)
