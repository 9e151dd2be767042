"""Infilling: cutting a text, choosing lengths, filling, and the given text coming back byte for byte."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from unmask.decode.denoiser import Denoiser
from unmask.decode.drafted import DraftedDenoiser
from unmask.decode.infill import Filler, Hole, Infilling, Segment, cut_lines, infill, parse_markers, start_infill
from unmask.decode.session import Model
from unmask.decode.settings import DecodeSettings
from unmask.errors import CanvasError, CheckpointError, NumericsError, TextError
from unmask.trajectory import Trajectory

from checkpoints import END_ID, FIM_PREFIX_ID, FIM_SUFFIX_ID, MASK_ID, VOCAB_SIZE, scripted, spell, tiny_model
from doubles import RowDenoiser

GROWS = Hole(most=9)
few = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def fixed(count: int) -> Hole:
    return Hole(least=count, most=count, grows=False)


def within(least: int, most: int) -> Hole:
    return Hole(least=least, most=most, grows=False)


@pytest.fixture(scope="module")
def full() -> Model:
    return tiny_model("full")


@pytest.fixture(scope="module")
def causal() -> Model:
    return tiny_model("causal")


def says(causal: Model, text: str) -> Model:
    """A causal model that writes this into every hole."""
    return scripted(causal, spell(text))


# --- texts that break careless code ---------------------------------------------------------------------------------

AWKWARD = [
    "\r\n",
    "\r",
    "\n",
    "\n\n",
    "\N{LINE SEPARATOR}",
    "\N{PARAGRAPH SEPARATOR}",
    "\x85",
    "\x0b",
    "\x0c",
    "\x1c",
    "\x00",
    "\N{ZERO WIDTH NO-BREAK SPACE}",
    "e\N{COMBINING ACUTE ACCENT}",
    "\N{ANGSTROM SIGN}",
    "👩‍👩‍👧",
    " ",
    "  ",
    "\t",
    "x ",
    "x \n",
    "    return total\n",
    "<|mask|>",
    "<|endoftext|>",
    "<|fim_middle|>",
    "[[",
    "]]",
    "[[?",
    "[[?]",
    "[?]]",
    "[[ ?]]",
    "[[?a]]",
    "[[?-3]]",
    "[[?3-]]",
    "[[??]]",
    "[[?+3]]",
    "[[?٣]]",
]
MARKERS = ["[[?]]", "[[?+]]", "[[?1]]", "[[?3]]", "[[?1-4]]", "[[?2-2]]", "[[?04]]"]
characters = st.characters(exclude_categories=["Cs"])
awkward_texts = st.lists(st.sampled_from(AWKWARD) | characters, max_size=12).map("".join)
texts_with_markers = st.lists(st.sampled_from([*AWKWARD, *MARKERS]) | characters, max_size=12).map("".join)


def slow_parse(text: str, *, limit: int) -> list[str | tuple[int, int, bool]]:
    """Character by character: given pieces, and (least, most, grows) for the holes between them."""
    pieces: list[str | tuple[int, int, bool]] = [""]
    at = 0
    while at < len(text):
        end = text.find("]]", at + 3)
        inside = text[at + 3 : end] if text[at : at + 3] == "[[?" and end >= 0 else None
        numbers = inside.split("-") if inside else []
        if inside in ("", "+"):
            pieces += [(1, limit, True), ""]
            at = end + 2
        elif len(numbers) in (1, 2) and all(n and set(n) <= set("0123456789") for n in numbers):
            pieces += [(int(numbers[0]), int(numbers[-1]), False), ""]
            at = end + 2
        else:
            pieces[-1] = str(pieces[-1]) + text[at]
            at += 1
    return pieces


def slow_lines(text: str) -> list[str]:
    """As editors count them: a line ends at a line feed, a carriage return, or the two in this order."""
    lines, line = [], ""
    for at, character in enumerate(text):
        line += character
        if character == "\n" or (character == "\r" and text[at + 1 : at + 2] != "\n"):
            lines.append(line)
            line = ""
    return [*lines, line] if line else lines


def assert_untouched(given_parts: Sequence[str], result: Infilling) -> None:
    """The text is the given parts with the holes between them, and the parts are found in it in their order."""
    assert len(result.holes) == len(given_parts) - 1
    woven = given_parts[0].encode()
    for hole, part in zip(result.holes, given_parts[1:], strict=True):
        woven += hole.encode() + part.encode()
    assert result.text.encode() == woven
    at = 0
    for part in given_parts:
        found = result.text.find(part, at)
        assert found >= at
        at = found + len(part)
    assert result.text.endswith(given_parts[-1])


# --- cutting a text ---------------------------------------------------------------------------------------------------


@given(texts_with_markers)
def test_markers_are_cut_as_a_reader_would_cut_them(text: str) -> None:
    found = [
        segment if isinstance(segment, str) else (segment.least, segment.most, segment.grows)
        for segment in parse_markers(text, limit=9)
    ]
    assert found == slow_parse(text, limit=9)


def test_a_marker_says_its_length() -> None:
    assert parse_markers("a[[?]]b[[?+]]c[[?12]]d[[?4-16]]", limit=20) == [
        "a",
        Hole(most=20),
        "b",
        Hole(most=20),
        "c",
        fixed(12),
        "d",
        within(4, 16),
        "",
    ]


@pytest.mark.parametrize("marker", ["[[?0]]", "[[?0-3]]", "[[?5-3]]"])
def test_a_marker_without_room_for_a_token_is_refused(marker: str) -> None:
    with pytest.raises(CanvasError, match=r"a hole of \d to \d tokens cannot be filled; it must be from 1 token up"):
        parse_markers(marker)


@given(text=awkward_texts, data=st.data())
def test_lines_are_cut_as_editors_count_them(text: str, data: st.DataObject) -> None:
    lines = slow_lines(text)
    chosen = data.draw(st.lists(st.booleans(), min_size=len(lines), max_size=len(lines)))
    ranges = [(number, number) for number, is_hole in enumerate(chosen, 1) if is_hole]
    segments = cut_lines(text, data.draw(st.permutations(ranges)), GROWS)
    bodies = [line.rstrip("\r\n") for line, is_hole in zip(lines, chosen, strict=True) if is_hole]
    left = iter(bodies)
    assert "".join(segment if isinstance(segment, str) else next(left) for segment in segments) == text
    kept = "".join(line[len(line.rstrip("\r\n")) :] if hole else line for line, hole in zip(lines, chosen, strict=True))
    assert "".join(segment for segment in segments if isinstance(segment, str)) == kept


@pytest.mark.parametrize(
    ("text", "ranges", "segments"),
    [
        ("a\nb\nc\n", [(2, 2)], ["a\n", GROWS, "\nc\n"]),
        ("a\r\nb\r\nc\r\n", [(2, 2)], ["a\r\n", GROWS, "\r\nc\r\n"]),
        ("a\rb\rc", [(2, 2)], ["a\r", GROWS, "\rc"]),
        ("a\nb\nc", [(3, 3)], ["a\nb\n", GROWS, ""]),
        ("a\nb\nc\n", [(1, 3)], ["", GROWS, "\n"]),
        ("a\nb\nc\n", [(3, 3), (1, 2)], ["", GROWS, "\n", GROWS, "\n"]),
        ("a\n\nc\n", [(2, 2)], ["a\n", GROWS, "\nc\n"]),
        ("a\x0cb\N{LINE SEPARATOR}c\x1cd\x85e\nf\n", [(1, 1)], ["", GROWS, "\nf\n"]),
    ],
)
def test_a_hole_takes_whole_lines_and_leaves_the_last_newline(
    text: str, ranges: list[tuple[int, int]], segments: list[Segment]
) -> None:
    assert cut_lines(text, ranges, GROWS) == segments


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ([(2, 3), (3, 4)], "the holes overlap at line 3: each line can lie in one hole; merge the ranges"),
        ([(1, 4), (2, 2)], "the holes overlap at line 2: each line can lie in one hole; merge the ranges"),
        ([(2, 2), (2, 2)], "the holes overlap at line 2: each line can lie in one hole; merge the ranges"),
        ([(3, 2)], "lines 3-2 run backwards; give the first line first: 2-3"),
        ([(0, 2)], "lines 0-2 are not in the text, which has 4 lines counted from 1; give FIRST-LAST within it"),
        ([(4, 5)], "lines 4-5 are not in the text, which has 4 lines counted from 1; give FIRST-LAST within it"),
    ],
)
def test_lines_that_cannot_be_holes_are_refused(ranges: list[tuple[int, int]], message: str) -> None:
    with pytest.raises(CanvasError) as caught:
        cut_lines("a\nb\nc\nd", ranges, GROWS)
    assert str(caught.value) == message


def test_an_empty_text_has_no_lines() -> None:
    with pytest.raises(CanvasError, match="which has 0 lines"):
        cut_lines("", [(1, 1)], GROWS)


# --- the promise ------------------------------------------------------------------------------------------------------


@few
@given(texts_with_markers, st.sampled_from([{}, {"temperature": 1.0, "seed": 3}, {"policy": "random"}]))
def test_given_text_is_byte_identical_after_infill_on_one_canvas(full: Model, text: str, how: dict[str, Any]) -> None:
    check_promise(full, text, DecodeSettings(**how))


@few
@given(texts_with_markers, st.sampled_from([{}, {"temperature": 1.0, "seed": 3}]))
def test_given_text_is_byte_identical_after_infill_hole_by_hole(causal: Model, text: str, how: dict[str, Any]) -> None:
    check_promise(causal, text, DecodeSettings(**how))


def check_promise(model: Model, text: str, how: DecodeSettings) -> None:
    segments = parse_markers(text, limit=9)
    parts = [piece for piece in slow_parse(text, limit=9) if isinstance(piece, str)]
    if len(parts) == 1:
        with pytest.raises(CanvasError, match="the text has no hole"):
            infill(model, segments, how)
        return
    result = infill(model, segments, how)
    assert_untouched(parts, result)
    assert result.finish_reason == "stop"


@few
@given(awkward_texts.filter(bool), st.data())
def test_lines_around_a_hole_of_lines_are_byte_identical(full: Model, text: str, data: st.DataObject) -> None:
    lines = slow_lines(text)
    first = data.draw(st.integers(1, len(lines)))
    last = data.draw(st.integers(first, len(lines)))
    result = infill(full, cut_lines(text, [(first, last)], fixed(3)))
    before, behind = "".join(lines[: first - 1]), "".join(lines[last:])
    newline = lines[last - 1][len(lines[last - 1].rstrip("\r\n")) :]
    assert result.text.encode() == (before + result.holes[0] + newline + behind).encode()


@pytest.mark.parametrize("kind", ["full", "causal"])
def test_a_hole_gets_exactly_the_tokens_it_asks_for_and_no_control_token(kind: str) -> None:
    for seed in range(5):
        model = tiny_model(kind, seed=seed)
        result = infill(model, ["a = ", fixed(7), "\nb = ", fixed(3), "\n"], DecodeSettings(temperature=2.0, seed=seed))
        tokens = [commit.token_id for run in result.trajectories for step in run.steps for commit in step.commits]
        assert len(tokens) == result.num_tokens == 10
        assert all(token < 256 for token in tokens)


# --- the length on one canvas -----------------------------------------------------------------------------------------


def slow_score(model: Model, row: list[int | None], low: int, high: int) -> float:
    """Mean log-probability of the likeliest allowed token of each mask in the hole, everything still masked."""
    ids = torch.tensor([[MASK_ID if token is None else token for token in row]])
    with torch.inference_mode():
        logits_LV = model.backbone.logits(model.backbone(ids, torch.arange(len(row))[None]))[0]
        best = []
        for position in range(low, high):
            scores_V = logits_LV[max(position - 1, 0), :256]  # the last state names the next token; bytes are allowed
            best.append(float(torch.log_softmax(scores_V.double(), -1).max()))
    return sum(best) / len(best)


def slow_lengths(model: Model, segments: Sequence[Segment], tried: Sequence[list[int]]) -> list[int]:
    """The best of the tried lengths, hole by hole; a growing hole stops at the first that is no better."""
    holes = [number for number, segment in enumerate(segments) if isinstance(segment, Hole)]
    lengths = {number: hole.least for number in holes if isinstance(hole := segments[number], Hole)}
    for number, candidates in zip(holes, tried, strict=True):
        scores: dict[int, float] = {}
        for length in candidates:
            row: list[int | None] = []
            low = 0
            for other, segment in enumerate(segments):
                low = len(row) if other == number else low
                if isinstance(segment, str):
                    row += list(segment.encode())
                else:
                    row += [None] * (length if other == number else lengths[other])
            scores[length] = slow_score(model, row, low, low + length)
            hole = segments[number]
            if isinstance(hole, Hole) and hole.grows and max(scores, key=scores.__getitem__) != length:
                break
        lengths[number] = max(scores, key=scores.__getitem__)
    return list(lengths.values())


def lengths_of(result: Infilling) -> list[int]:
    """How many masks each hole had, read from the record."""
    lengths: list[int] = []
    was_open = False
    for token in result.trajectories[0].initial_ids:
        if token is None:
            lengths[-1:] = [lengths[-1] + 1] if was_open else [*lengths[-1:], 1]
        was_open = token is None
    return lengths


def test_a_range_takes_the_best_scored_length() -> None:
    chosen = set()
    for seed in range(6):
        model = tiny_model("full", seed=seed)
        segments: list[Segment] = ["x = ", within(2, 8), "\ny = ", within(1, 4), "\n"]
        found = lengths_of(infill(model, segments))
        assert found == slow_lengths(model, segments, [list(range(2, 9)), list(range(1, 5))])
        chosen.add(tuple(found))
    assert len(chosen) > 1


def test_growth_adds_blocks_as_long_as_the_score_rises() -> None:
    chosen = set()
    for seed in range(8):
        model = tiny_model("full", seed=seed)
        segments: list[Segment] = ["x = ", Hole(most=28), "\ny = ", fixed(2), "\n"]
        found = lengths_of(infill(model, segments))
        assert found == slow_lengths(model, segments, [[8, 16, 24, 28], [2]])
        chosen.add(found[0])
    assert len(chosen) > 1


def test_among_equal_lengths_the_shortest_wins(full: Model) -> None:
    indifferent = scripted(full, lambda row, position: torch.zeros(VOCAB_SIZE))
    assert lengths_of(infill(indifferent, ["a", within(2, 5), "b", Hole(most=30), "c"])) == [2, 8]


def test_the_mask_itself_is_no_answer_that_could_make_a_length_likely() -> None:
    mask = ord("~")

    def scores(row: list[int], position: int) -> torch.Tensor:
        out = torch.zeros(VOCAB_SIZE)
        out[ord("x")] = 0.0 if row.count(mask) > 2 else 10.0
        out[mask] = 20.0 - out[ord("x")]
        return out

    model = scripted(tiny_model("full", mask_id=mask), scores)
    assert infill(model, ["a", within(1, 5), "b"]).text == "axb"


def test_a_wide_range_tries_eight_lengths_and_counts_their_cost(full: Model) -> None:
    filler = start_infill(full, ["x = ", within(3, 60), "\n"], DecodeSettings())
    assert all(event.num_forwards == 1 for event in filler)
    result = filler.result()
    (length,) = lengths_of(result)
    assert 3 <= length <= 60
    assert result.num_forwards == 8 + length
    assert result.seconds > filler.run.seconds
    assert result.positions_computed > length * (length + 5)


def test_a_fixed_hole_costs_no_probe(full: Model) -> None:
    result = infill(full, ["x = ", fixed(4), "\n"])
    assert result.num_forwards == 4
    assert result.positions_computed == 4 * (4 + 4 + 1)


def test_a_range_or_growth_keeps_within_what_the_context_leaves() -> None:
    model = tiny_model("full", max_positions=40)
    result = infill(model, ["x" * 20, Hole(most=64), "y" * 10, within(2, 30)])
    assert sum(lengths_of(result)) <= 10
    assert_untouched(["x" * 20, "y" * 10, ""], result)


def test_the_record_of_a_canvas_says_how_many_tokens_it_had(full: Model) -> None:
    (record,) = infill(full, ["x = ", fixed(3), "\n", fixed(2)]).trajectories
    assert record.settings["max_new_tokens"] == 5
    assert record.finish_reason == "length"


def test_the_same_seed_gives_the_same_text(full: Model, causal: Model) -> None:
    for model in (full, causal):
        texts = [
            infill(model, ["x = ", fixed(9), "\n"], DecodeSettings(temperature=1.5, seed=seed)).text
            for seed in (1, 1, 2)
        ]
        assert texts[0] == texts[1] != texts[2]


# --- hole by hole -----------------------------------------------------------------------------------------------------


def prompt_of(record: Trajectory) -> str:
    return record.text(token for token in record.initial_ids if token is not None)


def test_the_prompt_is_prefix_suffix_middle(causal: Model) -> None:
    result = infill(says(causal, "1"), ["a = ", GROWS, "\nb\n"])
    assert prompt_of(result.trajectories[0]) == "<|fim_prefix|>a =<|fim_suffix|>\nb\n<|fim_middle|>"
    assert result.trajectories[0].initial_ids[0] == FIM_PREFIX_ID


def test_a_given_text_that_names_control_tokens_stays_text(causal: Model) -> None:
    result = infill(says(causal, "1"), ["a<|fim_suffix|>", GROWS, "<|endoftext|>b"])
    ids = result.trajectories[0].initial_ids
    assert ids.count(FIM_SUFFIX_ID) == 1
    assert END_ID not in ids
    assert result.text == "a<|fim_suffix|>1<|endoftext|>b"


def test_a_later_hole_sees_what_an_earlier_one_got(causal: Model) -> None:
    result = infill(says(causal, "one"), ["a(", GROWS, ")b(", GROWS, ")c(", GROWS, ")"])
    assert [prompt_of(record) for record in result.trajectories] == [
        "<|fim_prefix|>a(<|fim_suffix|>)b()c()<|fim_middle|>",
        "<|fim_prefix|>a(one)b(<|fim_suffix|>)c()<|fim_middle|>",
        "<|fim_prefix|>a(one)b(one)c(<|fim_suffix|>)<|fim_middle|>",
    ]
    assert result.text == "a(one)b(one)c(one)"


@pytest.mark.parametrize(
    ("before", "said", "text"),
    [
        ("return ", " x", "return x|"),  # the space that was kept back comes from the model
        ("return ", "x", "return x|"),  # and is not missed where it does not
        ("return ", "  x", "return  x|"),
        ("return", " x", "return x|"),
        ("return  ", " x", "return   x|"),
        ("    ", " x", "     x|"),
        ("if x: \n", "    pass", "if x: \n    pass|"),
    ],
)
def test_a_space_at_the_end_of_the_prefix_is_owed_once(causal: Model, before: str, said: str, text: str) -> None:
    assert infill(says(causal, said), [before, GROWS, "|"]).text == text


@pytest.mark.parametrize(
    ("behind", "said", "hole"),
    [
        ("\n    return total\n", "    x\n    return total\n    return total\n", "    x"),
        ("\n    return total\n", "    x\n    return total", "    x"),  # the model ends without a newline
        ("\n    return total\n", "    x\n    return total  \n", "    x"),
        ("\n    return total\n", "    x\n    return total_of(x)\n", "    x\n    return total_of(x)\n"),
        ("\n    return total\n", "    return total\n    x", "    return total\n    x"),  # not a line of its own
        ("\n    return total\n", "    x\n\treturn total\n", "    x\n\treturn total\n"),
        ("\n\n    return total\n", "    x\n\n    return total\n", "    x\n"),
        ("\r\n    return total\r\n", "    x\r\n    return total\r\n", "    x"),
        ("\n}\n", "{\n}\n", "{\n}\n"),  # too short to tell
        ("", "x\ny\n", "x\ny\n"),
    ],
)
def test_a_fill_ends_where_it_repeats_the_line_behind_the_hole(
    causal: Model, behind: str, said: str, hole: str
) -> None:
    result = infill(says(causal, said), ["def f():\n", Hole(most=64), behind])
    assert result.holes == (hole,)
    assert result.text == "def f():\n" + hole + behind


def test_a_repeated_line_ends_the_run_and_counts_as_a_stop(causal: Model) -> None:
    said = "x\n    return total\n"
    result = infill(says(causal, said + "y" * 40), ["", Hole(most=64), "\n    return total\n"])
    assert (result.num_tokens, result.wasted_tokens) == (1, len(said) - 1)
    assert result.num_forwards == len(said)
    assert result.finish_reason == "stop"
    assert result.trajectories[0].finish_reason == "stop"


def test_a_fixed_hole_keeps_its_tokens_even_where_they_repeat_the_next_line(causal: Model) -> None:
    said = "x\n    return total\ny"
    result = infill(says(causal, said), ["", fixed(len(said)), "\n    return total\n"])
    assert result.holes == (said,)


def test_a_range_keeps_its_least_tokens_and_may_end_after_them(causal: Model) -> None:
    said = "x\n    return total\ny\n    return total\nz"
    result = infill(says(causal, said), ["", within(20, 60), "\n    return total\n"])
    assert result.holes == ("x\n    return total\ny",)


def test_a_range_stops_where_the_model_does_and_at_its_most(causal: Model) -> None:
    assert infill(says(causal, "abcde"), ["", within(2, 9), ""]).holes == ("abcde",)
    assert infill(says(causal, "abcde"), ["", within(2, 4), ""]).holes == ("abcd",)
    assert infill(says(causal, "abcde"), ["", Hole(most=3), ""]).holes == ("abc",)


def test_an_end_that_is_written_as_plain_text_ends_a_hole_and_is_not_in_it() -> None:
    model = says(tiny_model("causal", end_ids=(ord("!"),)), "ab!cd")
    assert infill(model, ["<", within(1, 9), ">", GROWS, ""]).holes == ("ab", "ab")


class InWindows(RowDenoiser, DraftedDenoiser):
    """Scores as they are told, in windows as those of a drafter."""

    window_length = 5


class Trusting(Model):
    """A causal model that settles windows: what it says goes on behind its end."""

    def denoiser(self, settings: DecodeSettings) -> Denoiser:
        return InWindows(self.backbone.config, spell([*b"one", END_ID, *b"tail"]))


def test_what_is_settled_behind_an_end_is_no_part_of_the_hole(causal: Model) -> None:
    trust = DecodeSettings(decoder="diffusion", policy="threshold", threshold=0.5)
    result = infill(Trusting(causal.backbone, causal.tokenizer), ["a(", GROWS, ")"], trust)
    assert result.trajectories[0].steps[0].commits[-1].token_id == ord("t")
    assert (result.text, result.num_tokens) == ("a(one)", 3)


def test_only_a_growing_hole_may_stay_empty(causal: Model) -> None:
    assert infill(says(causal, ""), ["a", GROWS, "b"]).text == "ab"
    result = infill(says(causal, ""), ["a", within(1, 4), "b"])
    assert len(result.holes[0]) == 1


def test_a_character_cut_in_two_by_the_limit_is_shown_and_nothing_else_is_hurt(causal: Model) -> None:
    result = infill(says(causal, "é"), ["é", Hole(most=1), "é"])
    assert result.text == "é\N{REPLACEMENT CHARACTER}é"


# --- left half-way ----------------------------------------------------------------------------------------------------


def take(filler: Filler, events: int) -> Infilling:
    for number, _ in enumerate(filler, 1):
        if number == events:
            break
    return filler.result()


def test_an_interrupted_canvas_gives_what_has_settled(full: Model) -> None:
    filler = start_infill(full, ["a = ", fixed(6), "\nb = ", fixed(6), "\n"], DecodeSettings(policy="left_to_right"))
    result = take(filler, 8)
    assert_untouched(["a = ", "\nb = ", "\n"], result)
    assert result.finish_reason == result.trajectories[0].finish_reason == "interrupted"
    assert result.num_tokens == result.num_forwards == 8
    assert result.holes[0] == infill(full, filler.segments, filler.settings).holes[0]


def test_an_interrupted_row_of_holes_keeps_the_finished_ones(causal: Model) -> None:
    result = take(start_infill(says(causal, "four"), ["a", GROWS, "b", GROWS, "c", GROWS, "d"], DecodeSettings()), 7)
    assert result.holes == ("four", "fo", "")
    assert result.text == "afourbfocd"
    assert result.finish_reason == "interrupted"
    assert [record.finish_reason for record in result.trajectories] == ["stop", "interrupted"]


def test_a_filler_that_never_began_gives_the_given_text(full: Model, causal: Model) -> None:
    for model in (full, causal):
        result = start_infill(model, ["a", fixed(2), "b"], DecodeSettings()).result()
        assert result.text == "ab"
        assert result.holes == ("",)
        assert result.trajectories == ()
        assert result.finish_reason == "interrupted"


def test_numbers_that_are_not_numbers_leave_the_record_so_far(full: Model) -> None:
    def scores(row: list[int], position: int) -> torch.Tensor:
        return torch.full((VOCAB_SIZE,), float("nan") if row.count(MASK_ID) <= 2 else 0.0)

    filler = start_infill(scripted(full, scores), ["a", fixed(4), "b"], DecodeSettings())
    with pytest.raises(NumericsError, match=r"not numbers \(NaN\) in step 3"):
        list(filler)
    assert len(filler.result().trajectories[0].steps) == 2


# --- refusals ---------------------------------------------------------------------------------------------------------


def message(kind: type[Exception], model: Model, *segments: Segment) -> str:
    with pytest.raises(kind) as caught:
        start_infill(model, segments, DecodeSettings())
    return str(caught.value)


def test_a_text_without_holes_is_refused(full: Model, causal: Model) -> None:
    for model in (full, causal):
        assert message(CanvasError, model, "no hole [[?") == (
            "the text has no hole; write [[?]] where the model should fill in ([[?12]] for 12 tokens, [[?4-16]] for a "
            "range), or name lines with --lines FIRST-LAST"
        )


def test_holes_that_do_not_fit_on_the_canvas_are_refused(full: Model) -> None:
    assert message(CanvasError, full, "a" * 300, fixed(200), "b", fixed(12)) == (
        "the given text and the holes take at least 513 tokens, but the model's context holds 512; "
        "shorten the text around the holes"
    )


def test_a_hole_that_does_not_fit_the_context_is_refused_before_any_is_filled(causal: Model) -> None:
    assert message(CanvasError, causal, "a", fixed(2), "b", fixed(600), "c") == (
        "the given text takes 6 tokens and the hole at least 600, but the model's context holds 512; "
        "shorten the text around the hole"
    )


def test_a_hole_that_no_longer_fits_behind_the_earlier_fills_is_refused_and_they_are_kept(causal: Model) -> None:
    filler = start_infill(causal, ["a" * 300, fixed(150), "b", fixed(100)], DecodeSettings())
    with pytest.raises(CanvasError, match="and the hole at least 100, but the model's context holds 512"):
        list(filler)
    assert filler.result().trajectories[0].finish_reason == "length"


def test_growth_keeps_within_the_context_hole_by_hole(causal: Model) -> None:
    said = "y" * 100
    result = infill(says(causal, said), ["a" * 500, Hole(most=64), "b"])
    assert result.holes == ("y" * (512 - 3 - 501),)


@pytest.mark.parametrize(("kind", "fim"), [("causal", False), ("block", True), ("block", False)])
def test_a_model_that_cannot_see_behind_a_hole_is_refused(kind: str, fim: bool) -> None:
    assert message(CheckpointError, tiny_model(kind, fim=fim), "a", GROWS) == (
        f"tiny-{kind} attends {kind!r}, so a hole would not see the text behind it, and it has no fill-in-the-middle "
        "form to make up for that; infill with a full-attention model such as diffucoder-7b-instruct, or with a "
        "Qwen2.5-Coder checkpoint"
    )


def test_a_tokenizer_that_knows_more_ids_than_the_network_is_refused_where_it_matters() -> None:
    model = tiny_model("full", vocab_size=200, mask_id=100, end_ids=())
    assert infill(model, ["abc", fixed(2)]).text.startswith("abc")
    with pytest.raises(CheckpointError) as caught:
        infill(model, ["日", within(2, 3)])
    assert str(caught.value) == (
        "the text holds the id 230, but tiny-full scores 200 ids; its tokenizer belongs to another model: take the "
        "tokenizer's files and the weights from one checkpoint"
    )


def test_a_lone_surrogate_is_refused(full: Model) -> None:
    assert "lone surrogate" in message(TextError, full, "a\udc80", GROWS)


def test_a_hole_at_the_very_start_of_a_shifted_model_has_something_before_it() -> None:
    """Without it the first two positions would get the same logits, those of the first position's own state."""
    model = tiny_model("full")
    assert model.backbone.config.shift_logits
    result = infill(model, [fixed(2), " = 1\n"])
    start = result.trajectories[0].initial_ids
    assert start[0] in {model.tokenizer.bos_id, model.backbone.config.bos_id, *model.end_ids}
    assert start[1:3] == [None, None]
    assert result.text.endswith(" = 1\n")
    assert infill(model, ["a", fixed(2)]).trajectories[0].initial_ids[0] == ord("a")


def test_a_length_that_is_none_is_refused() -> None:
    with pytest.raises(CanvasError, match=r"'x' is not the length of a hole; give 12, 4-16, or \+"):
        Hole.parse("x")
