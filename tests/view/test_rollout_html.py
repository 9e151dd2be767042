"""The page of a rollout card: whole, safe, and readable without colour."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest

from unmask.train.card import Card, CardAnswer
from unmask.view.rollout_html import page, write_card

ANSWER = CardAnswer(
    text="x = <1>",
    pieces=("x", " =", "\n"),
    has_ended=True,
    reward=2.5,
    rewards={"pass_fraction": 1.0, "code_format": None},
    advantage=0.75,
    is_counted=True,
    is_masked=((True, True, True), (True, False, True), (False, True, False)),
    weights=((0.5, 0.5, 0.5), (1.0, 0.0, 1.0), (0.0, 1.0, 0.0)),
    old_scores=(-1.0, -2.0, -0.5),
    scores=(-0.75, -2.5, -0.5),
    is_clipped=(True, False, False),
)
CARD = Card(phase=3, task_id="hard/<7>", prompt="def f(x):", estimator="coupled", answers=(ANSWER, ANSWER))


class Reader(HTMLParser):
    """The texts of the tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.tags.append(tag)

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def read(card: Card) -> Reader:
    reader = Reader()
    reader.feed(page(card))
    return reader


def test_each_token_shows_its_mask_its_score_and_its_change() -> None:
    texts = read(replace(CARD, answers=(ANSWER,))).texts
    first = texts.index("x")
    assert texts[first : first + 4] == ["x", "a", "-1.000", "+0.250|"]
    assert texts[first + 4 : first + 8] == ["␣=", "b", "-2.000", "-0.500"]
    assert texts[first + 8 : first + 12] == ["⏎", "a", "-0.500", "+0.000"]


def test_what_was_made_of_an_answer_stands_above_it() -> None:
    assert "Answer 1: reward 2.5 (pass_fraction 1, code_format –), advantage +0.750" in page(CARD)
    lost = replace(ANSWER, reward=None, is_counted=False, has_ended=False, advantage=0.0)
    shown = page(replace(CARD, answers=(lost,)))
    assert "not judged (pass_fraction 1, code_format –), advantage +0.000, never ended, not in the loss" in shown


def test_hostile_texts_are_shown_and_do_nothing(tmp_path: Path) -> None:
    hostile = replace(
        ANSWER, text="<script>alert(1)</script>\x1b[2J", pieces=("<script>", "\x1b[2J", "&amp;"), rewards={"<b>": 1.0}
    )
    write_card(tmp_path / "phase-000003", replace(CARD, prompt="</pre><img src=x>", answers=(hostile,)))
    whole = (tmp_path / "phase-000003.html").read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["phase-000003.html"]
    assert "\x1b" not in whole
    assert not {"script", "img", "b"} & set(read(replace(CARD, prompt="</pre><img>", answers=(hostile,))).tags)
    assert re.search("default-src 'none'", whole)


ALL, NONE = (True, True, True), (False, False, False)
SOME, REST = (True, False, True), (False, True, False)


def letters(*views: tuple[bool, ...]) -> list[str]:
    shown = read(replace(CARD, answers=(replace(ANSWER, is_masked=views),))).texts
    return [text for text in shown if text in ("a", "b", "·")]


@pytest.mark.parametrize(
    "views",
    [
        (ALL,),
        (ALL, ALL),
        (ALL, SOME, SOME),  # decoupled: both hide a token, or neither does
        (SOME, (False, False, True)),  # elbo
        (SOME, (False, False, True), SOME, REST),
        (ALL, SOME, ALL, SOME, REST),  # the second pair's letters are not the first's
    ],
)
def test_views_that_are_not_each_others_rest_have_no_letters(views: tuple[tuple[bool, ...], ...]) -> None:
    assert letters(*views) == ["·"] * 3


def test_letters_are_the_first_pairs_also_where_one_half_hides_the_whole_answer() -> None:
    assert letters(ALL, ALL, NONE, SOME, REST) == ["a"] * 3
    assert letters(ALL, NONE, ALL, SOME, REST) == ["b"] * 3
    assert letters(REST, SOME) == ["b", "a", "b"]  # espo: no view stands alone


def test_the_legend_says_what_the_letters_mean_and_where_there_are_none() -> None:
    bare = replace(ANSWER, is_masked=(ALL, SOME, SOME))
    assert "which of the first pair's two masks hid it (a or b), its score" in " ".join(read(CARD).texts)
    mixed = " ".join(read(replace(CARD, answers=(ANSWER, bare))).texts)
    assert "two masks hid it (a or b; · in answers that they do not part in two), its score" in mixed
    none = " ".join(read(replace(CARD, answers=(bare,))).texts)
    assert "Under each token: · (no letter: the estimator's first masks do not part the answer in two)" in none
