"""A rollout card as one HTML file: a prompt, the answers to it, and what reinforcement learning made of each token.

Under each token stand the letter of the mask that hid it, its score before the phase, and how far the phase moved it.
The letters are `a` and `b`, the first pair's two views, if each hides just what the other shows; of other views, as
`elbo` and `decoupled` have, none is meant, and there stands a `·`. A token that the clipping holds back is marked `|`.
Like the evaluation's page it needs no script and no network, says nothing by colour alone, and treats every text in it
as hostile.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from unmask.atomic import beside
from unmask.view.evaluation_html import POLICY, STYLE, text

if TYPE_CHECKING:
    from unmask.train.card import Card, CardAnswer

_MORE_STYLE = """
.tokens { display: flex; flex-wrap: wrap; gap: .3rem .1rem; font: 13px/1.3 ui-monospace, monospace; }
.tokens > span { padding: .1rem .25rem; border: 1px solid var(--line); border-radius: 3px; white-space: pre; }
.tokens small { display: block; font-size: 10px; } .a { background: var(--panel); } .up, .down { font-weight: bold; }
"""
_SHOWN = 3
"""Decimals of a score."""


def write_card(path: Path, card: "Card") -> None:
    """Write the page beside `path`, whole or not at all."""
    with beside(path.with_name(f"{path.name}.html")) as part:
        part.write_text(page(card), encoding="utf-8")


def page(card: "Card") -> str:
    """The whole file."""
    title = text(f"{card.task_id}: {len(card.answers)} answers of phase {card.phase}")
    answers = "\n".join(_answer(number, answer) for number, answer in enumerate(card.answers, 1))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{title}</title>\n<style>{STYLE}{_MORE_STYLE}</style>\n</head>\n<body>\n"
        f"<header><h1>{title}</h1><p>{text(_legend(card))}</p></header>\n"
        f"<section><h2>Prompt</h2><pre>{text(card.prompt)}</pre></section>\n{answers}\n</body>\n</html>\n"
    )


def _legend(card: "Card") -> str:
    paired = [_first_pair(answer) is not None for answer in card.answers]
    if all(paired):
        mask = "which of the first pair's two masks hid it (a or b)"
    elif any(paired):
        mask = "which of the first pair's two masks hid it (a or b; · in answers that they do not part in two)"
    else:
        mask = "· (no letter: the estimator's first masks do not part the answer in two)"
    return (
        f"Scores by the estimator {card.estimator}, in nats. Under each token: {mask}, its score before the phase, and "
        "the change by it; | marks a token that the clipping holds."
    )


def _answer(number: int, answer: "CardAnswer") -> str:
    return (
        f"<section><h2>Answer {number}: {text(_verdict(answer))}</h2>\n<pre>{text(answer.text)}</pre>\n"
        f'<div class="tokens">{"".join(_tokens(answer))}</div></section>'
    )


def _verdict(answer: "CardAnswer") -> str:
    reward = "not judged" if answer.reward is None else f"reward {answer.reward:g}"
    parts = [f"{name} {'–' if value is None else f'{value:g}'}" for name, value in answer.rewards.items()]
    said = f"{reward} ({', '.join(parts)}), advantage {answer.advantage:+.3f}"
    if not answer.has_ended:
        said += ", never ended"
    return said if answer.is_counted else f"{said}, not in the loss"


def _tokens(answer: "CardAnswer") -> Iterator[str]:
    pair = _first_pair(answer)
    for place, piece in enumerate(answer.pieces):
        old, new = answer.old_scores[place], answer.scores[place]
        letter = "·" if pair is None else "a" if pair[0][place] else "b"
        change = f"{new - old:+.{_SHOWN}f}{'|' if answer.is_clipped[place] else ''}"
        moved = "up" if new > old else "down" if new < old else ""
        yield (
            f'<span class="{"a" if letter == "a" else ""}">{text(_visible(piece))}<small>{letter}</small>'
            f'<small>{old:.{_SHOWN}f}</small><small class="{moved}">{change}</small></span>'
        )


def _first_pair(answer: "CardAnswer") -> tuple[tuple[bool, ...], tuple[bool, ...]] | None:
    """The first two views that come in pairs, if each hides just what the other shows.

    Of an odd number of views the first stands alone: `coupled` has one that hides all, and then its pairs.
    """
    views = answer.is_masked[len(answer.is_masked) % 2 :][:2]
    if len(views) < 2 or any(a == b for a, b in zip(*views, strict=True)):
        return None
    return views[0], views[1]


def _visible(piece: str) -> str:
    return piece.replace("\n", "⏎").replace(" ", "␣") or "∅"
