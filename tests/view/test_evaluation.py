"""The report of an evaluation: what it must say, on a terminal and in HTML, and that hostile text stays text."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest
from rich.console import Console, RenderableType

from unmask.evaluate.compare import Comparison
from unmask.evaluate.result import CellResult, Cost, Result
from unmask.evaluate.samples import Sample
from unmask.evaluate.score import Outcome
from unmask.view import evaluation_html
from unmask.view.evaluation import differences, heading, notes, summary
from unmask.view.evaluation_html import page, text

EVIL = "</pre><script>alert(1)</script><img src=http://x.example/a onerror=alert(2)>\x1b]0;x\x07"


def cell(name: str = "only", score: float = 0.5, **changes: Any) -> CellResult:
    given: dict[str, Any] = {
        "name": name,
        "settings": {"temperature": 0.2},
        "num_samples": 2,
        "num_tasks_judged": 2,
        "pass_at_k": {"1": score},
        "intervals": {"1": (score - 0.25, score + 0.25)},
        "sets": {"base": {"1": 0.75}, "plus": {"1": score}},
        "statuses": {"pass": 1, "timeout": 1},
        "cost": Cost(num_forwards=64, tokens_per_forward=1.5, num_tokens=96, empty_share=0.125, truncated_share=0.0625),
        "tasks": {
            "toy/0": (Outcome(sample=0, status="pass"),),
            "toy/1": (Outcome(sample=0, status="timeout", message="base: no end after 10 s"),),
        },
    }
    return CellResult(**{**given, **changes})


def result(*cells: CellResult, **changes: Any) -> Result:
    given: dict[str, Any] = {
        "benchmark": "toy",
        "version": "v1",
        "model": "tiny",
        "num_tasks": 2,
        "n": 1,
        "seed": 0,
        "cells": cells or (cell(),),
        "sandbox": {"backend": "bwrap", "guarantees": ["no network"], "interpreter": "Python 3.11.7"},
        "data_sha256": {"toy.jsonl": "ab" * 32},
        "preset": {"name": "evalplus", "source": "EvalPlus"},
        "timing": {"only": {"seconds": 9.0, "tokens_per_second": 21.3}},
    }
    return Result(**{**given, **changes})


def shown(renderable: RenderableType) -> str:
    console = Console(width=160, record=True, color_system=None)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def test_the_report_has_the_score_its_interval_its_cost_and_how_samples_ended() -> None:
    out = shown(summary(result()))
    assert "toy v1: tiny, 2 tasks × 1 sample, preset evalplus" in out
    assert "50.0 % (25.0 to 75.0)" in out
    assert re.search(r"base alone @1 +plus alone @1", out)
    assert re.search(r"forwards +tokens per forward", out)
    assert re.search(r"64 +1.5 +96 ", out)
    assert re.search(r"12.5 % +6.2 %", out)
    assert re.search(r"passed +out of time", out)
    assert "judged by bwrap on Python 3.11.7: no network" in out


def test_a_grid_says_which_cell_was_registered_and_that_the_best_is_selected() -> None:
    cells = (cell("steps=8", 0.3), cell("steps=16", 0.6))
    said = list(notes(result(*cells, registered="steps=8")))
    assert "registered before the run: steps=8" in said
    assert "best: steps=16 with 60.0 % (best of 2 cells, selected on this data)" in said
    assert "no cell was registered before the run; the result quotes the first one, steps=8" in notes(result(*cells))
    assert "steps=16 (best, selected)" in shown(summary(result(*cells)))


def test_a_single_cell_needs_no_such_words() -> None:
    assert not any("registered" in note or "best" in note for note in notes(result()))


def test_lost_raw_texts_are_told_and_leave_no_gap_between_columns() -> None:
    lost = result(cell(raw_pass_at_k={"1": None}, raw_not_judged=3))
    assert "NOT JUDGED: 3 texts as they stand are left out of the scores of the raw text" in notes(lost)
    assert re.search(r"50.0 % +–", shown(summary(lost)))
    assert "–" in page(lost)


def test_weaker_verdicts_tampering_and_lost_samples_are_told() -> None:
    outcomes = {
        "a": (Outcome(sample=0, status="fail", is_in_process=True, tampering="unittest patched"),),
        "b": (Outcome(sample=0, status="sandbox_error", message="no worker"),),
    }
    said = "\n".join(notes(result(cell(tasks=outcomes))))
    assert "weaker verdicts" in said
    assert "1 samples were caught tampering" in said
    assert "NOT JUDGED: 1 samples are left out of the scores (no worker); tasks: b" in said


def test_samples_without_known_cost_have_no_cost_table() -> None:
    assert "forwards" not in shown(summary(result(cell(cost=Cost()))))


def test_control_characters_of_names_do_not_reach_the_terminal() -> None:
    out = shown(summary(result(model="\x1b[2Jx", notes=("\x1b]0;t\x07",))))
    assert "\x1b" not in out
    assert "␛[2Jx" in out


def test_a_comparison_names_the_tasks_and_the_chance() -> None:
    comparison = Comparison(
        benchmark="toy",
        model_a="one",
        model_b="two",
        cell_a="only",
        cell_b="only",
        pass_at_1_a=0.5,
        pass_at_1_b=0.6,
        difference=0.1,
        interval=(-0.05, 0.25),
        p_value=0.25,
        test="McNemar, exact",
        num_tasks=10,
        both=4,
        neither=3,
        better_a=("toy/1",),
        better_b=("toy/2", "toy/3"),
        not_compared=("toy/9",),
    )
    out = shown(differences(comparison))
    assert "B − A: +10.0 points (-5.0 to +25.0), p = 0.25 (McNemar, exact, 10 tasks)" in out
    assert "better in A (1): toy/1\n" in out
    assert "better in B (2): toy/2, toy/3\n" in out
    assert "not compared, as only one of them has it: toy/9" in out


# HTML


class Reader(HTMLParser):
    """The tags and attributes of a page, and whether its tags are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]
        if tag not in ("meta", "link", "img", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]


def read(html: str) -> Reader:
    reader = Reader()
    reader.feed(html)
    assert reader.open == []
    return reader


def samples(**given: Any) -> list[Sample]:
    return [Sample(task_id="toy/1", cell="only", program="while True: pass", raw="Sure!", **given)]


def test_the_page_shows_scores_protocol_prompt_and_failures_beside_their_errors() -> None:
    html = page(result(first_prompt="def f():", first_outputs=("    return 1",)), samples())
    read(html)
    for said in (
        "50.0 %",
        "ab" * 32,
        "def f():",
        "    return 1",
        "out of time",
        "while True: pass",
        "no end after 10 s",
    ):
        assert said in html, said
    assert "toy/0" not in html  # it passed


def test_hostile_text_stays_text_wherever_it_stands() -> None:
    evil = cell(
        name=EVIL,
        settings={"policy": EVIL},
        tasks={EVIL: (Outcome(sample=0, status="fail", message=EVIL),)},
    )
    whole = result(
        evil,
        model=EVIL,
        benchmark=EVIL,
        notes=(EVIL,),
        first_prompt=EVIL,
        first_outputs=(EVIL,),
        preset={"name": EVIL},
        protocol={EVIL: EVIL},
        data_sha256={EVIL: EVIL},
    )
    reader = read(page(whole, [Sample(task_id=EVIL, cell=EVIL, program=EVIL, raw=EVIL)]))
    assert not {"script", "img", "iframe", "link", "object"} & set(reader.tags)
    assert not [name for name, _ in reader.attributes if name.startswith("on") or name in ("src", "href")]
    assert "\x1b" not in page(whole)


def test_the_page_asks_for_nothing_and_runs_nothing() -> None:
    html = page(result(), samples())
    assert "default-src 'none'" in html
    assert not re.search(r"https?://|url\(|@import|<script", html)


def test_the_page_reads_in_dark_and_in_light() -> None:
    assert "prefers-color-scheme: dark" in page(result())
    assert "color-scheme: light dark" in page(result())


def test_lone_surrogates_and_null_bytes_can_be_written() -> None:
    html = page(result(first_outputs=("\ud800\x00",)), samples())
    assert "\x00" not in html
    html.encode("utf-8")


def test_long_texts_are_cut_and_say_so() -> None:
    assert text("x" * 30, limit=10) == "x" * 10 + "\n… 20 more characters"
    html = page(result(first_prompt="y" * 1_000_000))
    assert len(html) < 100_000


def test_long_lists_of_failures_are_cut_and_say_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluation_html, "MAX_FAILURES", 3)
    tasks = {f"toy/{i}": (Outcome(sample=0, status="fail"),) for i in range(8)}
    html = page(result(cell(tasks=tasks)))
    assert html.count('<details class="sample">') == 3
    assert "5 more are in result.json" in html


def test_a_failing_sample_that_is_not_at_hand_is_still_listed() -> None:
    assert "The program is not at hand." in page(result())


def test_samples_that_were_given_have_no_prompt() -> None:
    assert "what the model was asked is not known" in page(result(first_prompt="", first_outputs=()))


def test_what_is_best_is_marked_in_words() -> None:
    whole = result(cell("steps=8", 0.3), cell("steps=16", 0.6), registered="steps=8")
    assert "best, selected" in page(whole)
    assert "best of 2 cells, selected on this data" in page(whole)
    assert heading(replace(whole, n=3)).endswith("3 samples, preset evalplus")
