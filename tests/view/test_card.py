"""The speed card: its arithmetic, its two lines, and runs in which nothing happened."""

from dataclasses import replace

import pytest

from unmask.view.card import SpeedCard

CARD = SpeedCard(settled_tokens=256, num_forwards=64, positions_computed=24576, wasted_tokens=64, seconds=8.0, rows=1)


def test_rates_count_what_is_part_of_the_answer() -> None:
    assert CARD.settled_tokens_per_second == 24.0
    assert CARD.tokens_per_forward == 3.0
    assert CARD.wasted_share == 0.25


def test_format_is_two_lines_that_name_every_quantity() -> None:
    assert CARD.format().splitlines() == [
        "24.0 settled tokens/s: 192 tokens in 8.0 s, 25% wasted after the end",
        "64 forwards, 3.0 tokens per forward, 24,576 positions computed",
    ]


def test_a_run_that_drafted_has_a_line_about_it() -> None:
    card = replace(CARD, drafted_tokens=200, accepted_tokens=128)
    assert card.format().splitlines()[2:] == ["200 tokens drafted and checked, 64% accepted"]


def test_a_batch_tells_tokens_per_forward_of_one_row_too() -> None:
    assert "3.0 tokens per forward (0.4 a row)" in replace(CARD, rows=8).format()


@pytest.mark.parametrize(
    ("wasted", "words"), [(0, "nothing wasted after the end"), (1, "under 1% wasted"), (256, "100% wasted")]
)
def test_waste_is_never_rounded_away(wasted: int, words: str) -> None:
    assert words in replace(CARD, wasted_tokens=wasted).format()


def test_one_is_singular() -> None:
    text = replace(CARD, settled_tokens=1, num_forwards=1, positions_computed=1, wasted_tokens=0).format()
    assert "1 token in" in text
    assert "1 forward," in text
    assert "1 position computed" in text


def test_a_run_without_steps_or_time_divides_by_nothing() -> None:
    empty = SpeedCard(settled_tokens=0, num_forwards=0, positions_computed=0, wasted_tokens=0, seconds=0.0, rows=0)
    assert (empty.settled_tokens_per_second, empty.tokens_per_forward, empty.wasted_share) == (0.0, 0.0, 0.0)
    assert empty.format().startswith("0.0 settled tokens/s: 0 tokens in 0.0 s")


def test_both_lines_fit_80_columns_for_a_long_run() -> None:
    long = SpeedCard(
        settled_tokens=16384,
        num_forwards=2048,
        positions_computed=9_999_999,
        wasted_tokens=9999,
        seconds=999.0,
        rows=8,
    )
    assert max(len(line) for line in long.format().splitlines()) <= 80
