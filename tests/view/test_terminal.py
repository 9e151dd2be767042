"""The terminal view: the canvas as text, the window on a long one, and the live drawing's manners."""

import io
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

from unmask.trajectory import Commit, Frame, Step, Trajectory
from unmask.view import terminal
from unmask.view.terminal import LiveCanvas, legend, printable, render, status

Pieces = dict[int, str]


def frame_of(
    *tokens: str | None,
    given: int = 0,
    new: tuple[int, ...] = (),
    confidence: dict[int, float] | None = None,
    step: int = 1,
) -> tuple[Frame, Pieces]:
    """A frame whose tokens are spelt out; None is masked, the first `given` ones are the prompt."""
    pieces = {position: piece for position, piece in enumerate(tokens) if piece is not None}
    ids = tuple(None if piece is None else position for position, piece in enumerate(tokens))
    return Frame(step, ids, frozenset(range(given)), frozenset(new), confidence or {}), pieces


def style_at(text: Text, part: str) -> str:
    start = text.plain.index(part)
    return next(str(span.style) for span in text.spans if span.start <= start < span.end)


def drawn_states(*tokens: str | None, colour: bool) -> dict[str, str]:
    confidence = {2: 0.95, 3: 0.6, 4: 0.1, 5: 0.99}
    frame, pieces = frame_of(*tokens, given=1, new=(5,), confidence=confidence)
    text = render(frame, pieces, width=80, colour=colour)
    parts = ["given", "░", "sure", "fair", "doubt", "new"]
    return {part: style_at(text, part) for part in parts}


# --- one canvas as text -------------------------------------------------------------------------------------------


def test_every_masked_token_is_one_cell() -> None:
    frame, pieces = frame_of("def ", None, None, "(x)", None, given=1)
    assert render(frame, pieces, width=80).plain == "def ░░(x)░"


@pytest.mark.parametrize("colour", [True, False])
def test_states_have_looks_of_their_own(colour: bool) -> None:
    looks = drawn_states("given", None, "sure", "fair", "doubt", "new", colour=colour)
    settled = {looks[part] for part in ("sure", "fair", "doubt")}
    assert len(settled) == 3
    assert len({looks["new"], looks["given"]} | settled) == 5
    if colour:
        assert looks["░"] not in settled | {looks["new"], looks["given"]}


def test_without_colour_no_look_needs_a_colour() -> None:
    words = {word for style in terminal.WITHOUT_COLOUR.values() for word in style.split()}
    assert words <= {"none", "reverse", "underline", "bold", "dim"}


def test_confidence_that_is_no_number_counts_as_unsure() -> None:
    frame, pieces = frame_of("x", confidence={0: float("nan")})
    assert style_at(render(frame, pieces, width=80), "x") == terminal.COLOURS["unsure"]


def test_newlines_break_lines_and_tabs_reach_the_next_stop() -> None:
    frame, pieces = frame_of("a:\n", "\tb", "\n\n", "xy\tc")
    assert render(frame, pieces, width=80).plain.split("\n") == ["a:", " " * 8 + "b", "", "xy" + " " * 6 + "c"]


def test_wide_characters_are_never_cut_at_the_edge() -> None:
    frame, pieces = frame_of("世界世界世界")
    assert render(frame, pieces, width=5).plain.split("\n") == ["世界", "世界", "世界"]


def test_a_character_split_over_tokens_appears_with_its_last_token() -> None:
    frame, pieces = frame_of("\udce6\udc97", "\udca5本", new=(1,))
    text = render(frame, pieces, width=80)
    assert text.plain == "日本"
    assert style_at(text, "日") == terminal.COLOURS["new"]


def test_half_a_character_before_a_mask_or_the_end_is_a_replacement_sign() -> None:
    frame, pieces = frame_of("\udce6\udc97", None, "\udce6")
    assert render(frame, pieces, width=80).plain == "\ufffd░\ufffd"


@pytest.mark.parametrize(
    ("piece", "shown"),
    [
        ("\x1b[31m", "␛[31m"),
        ("\x07\x00\x7f", "␇␀␡"),
        ("a\r\nb", "a\nb"),
        ("a\rb", "a␍b"),
        ("\x9b2J", "\ufffd2J"),
        ("a\u202eb\u2028c", "a\ufffdb\ufffdc"),
    ],
)
def test_control_characters_cannot_reach_the_terminal(piece: str, shown: str) -> None:
    frame, pieces = frame_of(piece)
    assert render(frame, pieces, width=80).plain == shown
    assert printable(piece) == shown


def test_a_token_without_a_piece_shows_its_id() -> None:
    frame, _ = frame_of("x")
    assert render(frame, {}, width=80).plain == "<0>"


def test_end_tokens_are_one_cell_but_given_ones_keep_their_text() -> None:
    frame = Frame(1, (7, 1, 7, 7, None), frozenset({0}), frozenset({3}), {2: 0.9})
    text = render(frame, {7: "<|end|>", 1: "x"}, width=80, end_ids=[7])
    assert text.plain == "<|end|>x∎∎░"


@given(
    tokens=st.lists(st.one_of(st.none(), st.text(max_size=6), st.sampled_from(["\udce6", "\udc97", "\t", "\n"]))),
    width=st.integers(2, 30),
)
@settings(max_examples=200, deadline=None)
def test_lines_fit_the_width_and_masks_are_counted_for_any_text(tokens: list[str | None], width: int) -> None:
    text = render(*frame_of(*tokens), width=width, mask="▒").plain
    assert all(cell_len(line) <= width for line in text.split("\n"))
    assert text.count("▒") == tokens.count(None) + sum(piece.count("▒") for piece in tokens if piece)
    text.encode("utf-8")  # no lone surrogate is left


# --- the prompt, and the window -----------------------------------------------------------------------------------

PROMPT = ["one\n", "two\n", "three\n"]


@pytest.mark.parametrize(
    ("context", "shown"),
    [(0, "░x"), (1, "three\n░x"), (2, "two\nthree\n░x"), (9, "one\ntwo\nthree\n░x"), (None, "one\ntwo\nthree\n░x")],
)
def test_context_counts_the_given_lines_that_are_drawn(context: int | None, shown: str) -> None:
    frame, pieces = frame_of(*PROMPT, None, "x", given=3)
    assert render(frame, pieces, width=80, context=context).plain == shown


def test_context_is_drawn_on_both_sides_of_a_hole() -> None:
    pieces = dict(enumerate(["a\n", "b\n", "c", "", "d\n", "e\n", "f\n"]))
    ids = (0, 1, 2, None, 4, 5, 6)
    frame = Frame(0, ids, frozenset({0, 1, 2, 4, 5, 6}), frozenset(), {})
    assert render(frame, pieces, width=80, context=1).plain == "b\nc░d\ne"


def test_a_row_that_is_given_entirely_draws_nothing_unless_asked() -> None:
    frame, pieces = frame_of("a", "b", given=2)
    assert render(frame, pieces, width=80).plain == ""
    assert render(frame, pieces, width=80, context=None).plain == "ab"


def tall(*, new: tuple[int, ...], lines: int = 30) -> tuple[Frame, Pieces]:
    return frame_of(*[f"line {number}\n" for number in range(lines)], None, new=new)


def test_a_tall_canvas_shows_the_newest_commits_and_counts_what_is_hidden() -> None:
    frame, pieces = tall(new=(14, 15))
    lines = render(frame, pieces, width=80, height=6).plain.split("\n")
    assert len(lines) == 6
    assert {"line 14", "line 15"} <= set(lines)
    assert lines[-1] == "(lines hidden: 11 above, 15 below)"


def test_the_window_moves_no_further_than_it_must() -> None:
    frame, pieces = tall(new=(14,))
    assert render(frame, pieces, width=80, height=6, top=12).plain.startswith("line 12\n")
    assert render(frame, pieces, width=80, height=6, top=20).plain.startswith("line 14\n")


def test_without_news_the_window_holds_the_first_mask() -> None:
    frame, pieces = tall(new=())
    assert "░" in render(frame, pieces, width=80, height=6).plain


def test_the_window_prefers_the_lines_with_most_news() -> None:
    frame, pieces = tall(new=(2, 20, 22))
    shown = render(frame, pieces, width=80, height=6).plain
    assert "line 20" in shown
    assert "line 22" in shown


def test_a_window_of_one_line_still_shows_one_line() -> None:
    frame, pieces = tall(new=(14,))
    assert render(frame, pieces, width=80, height=1).plain.split("\n")[0] == "line 14"


# --- legend, status -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("colour", [True, False])
def test_the_legend_names_every_state_on_one_line_of_80_columns(colour: bool) -> None:
    text = legend(colour=colour, with_end=True)
    for word in ("░ masked", "new", "sure 90%+", "fair 50%+", "unsure", "given", "∎ end"):
        assert word in text.plain
    assert text.cell_len <= 80
    assert "\n" not in text.plain


def test_the_status_line_counts_open_positions_only() -> None:
    frame, _ = frame_of("p", "p", "a", None, None, given=2, step=3)
    assert status(frame, num_forwards=4, total_steps=None) == ("step 3, 1/3 settled, 4 forwards, 0.2 tokens/forward")


def test_the_status_line_survives_no_forward_at_all() -> None:
    frame, _ = frame_of(None, step=0)
    assert status(frame, num_forwards=0, total_steps=5, seconds=0.0) == (
        "step 0 of 5, 0/1 settled, 0 forwards, 0.0 tokens/forward, 0.0 s"
    )


def test_the_status_line_of_a_long_run_fits_80_columns() -> None:
    frame = Frame(1024, (1,) * 1024, frozenset(), frozenset(), {})
    assert len(status(frame, num_forwards=1024, total_steps=1024, seconds=999.9)) <= 80


def recording() -> Trajectory:
    steps = [Step(commits=[Commit(0, position, position, 0.9, 0.1)]) for position in (2, 1, 3)]
    return Trajectory(initial_ids=[0, None, None, None], steps=steps, pieces={0: ">", 1: "a", 2: "\n", 3: "b"})


# --- live ---------------------------------------------------------------------------------------------------------


class Terminal:
    """A console on a string, 80 columns by 12 lines, with a clock that only moves when told."""

    def __init__(self, *, encoding: str = "utf-8", **options: object) -> None:
        self.raw = io.BytesIO()
        self.file = io.TextIOWrapper(self.raw, encoding=encoding, write_through=True, errors="strict")
        known = {"force_terminal": True, "width": 80, "height": 12, "color_system": "standard"}
        self.console = Console(file=self.file, **{**known, "_environ": {}, **options})  # type: ignore[arg-type]
        self.now = 0.0

    def canvas(self, **options: object) -> LiveCanvas:
        return LiveCanvas(self.console, clock=lambda: self.now, **options)  # type: ignore[arg-type]

    @property
    def output(self) -> str:
        return self.raw.getvalue().decode(self.file.encoding)


def show(canvas: LiveCanvas, frame_and_pieces: tuple[Frame, Pieces]) -> None:
    frame, pieces = frame_and_pieces
    canvas.update(frame, pieces, num_forwards=frame.step, total_steps=10)


def test_live_draws_canvas_legend_and_status() -> None:
    screen = Terminal()
    with screen.canvas() as canvas:
        show(canvas, frame_of("a", None))
    assert "░ masked" in screen.output
    assert "step 1 of 10, 1/2 settled, 1 forward, 1.0 tokens/forward, 0.0 s" in screen.output


def test_live_is_silent_without_a_terminal() -> None:
    for options in ({"force_terminal": False}, {"_environ": {"TERM": "dumb"}}):
        screen = Terminal(**options)
        with screen.canvas(keep=True) as canvas:
            show(canvas, frame_of("a", None))
        assert screen.output == ""


def test_live_draws_at_most_twenty_frames_a_second() -> None:
    screen = Terminal()
    with screen.canvas() as canvas:
        for number in range(100):
            screen.now = number / 100
            show(canvas, frame_of("a", None, step=number))
    drawn = re.findall(r"step (\d+) of 10", screen.output)
    assert 10 <= len(drawn) <= 21
    assert drawn[0] == "0"


def test_commits_of_skipped_frames_are_new_in_the_next_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Terminal(color_system=None)
    with screen.canvas() as canvas:
        show(canvas, frame_of(None, None))
        screen.now = 0.01
        show(canvas, frame_of("a", None, new=(0,)))
        screen.now = 1.0
        drawn: list[frozenset[int]] = []
        monkeypatch.setattr(canvas, "_draw", lambda frame, *_: drawn.append(frame.new))
        show(canvas, frame_of("a", "b", new=(1,)))
    assert drawn == [frozenset({0, 1})]


def test_news_from_before_a_resize_are_forgotten() -> None:
    screen = Terminal()
    with screen.canvas() as canvas:
        show(canvas, frame_of(None, None))
        screen.now = 0.01
        show(canvas, frame_of("a", None, new=(0,)))
        show(canvas, frame_of("a", None, None, "b", new=(3,)))
        assert canvas._new == {3}


def test_keep_leaves_the_last_state_even_when_it_came_too_soon() -> None:
    screen = Terminal()
    with screen.canvas(keep=True) as canvas:
        show(canvas, frame_of(None, None))
        screen.now = 0.001
        show(canvas, frame_of("first", "last", step=2))
    assert "firstlast" in screen.output
    assert "step 2 of 10" in screen.output


def test_the_cursor_comes_back_when_the_run_is_interrupted() -> None:
    screen = Terminal()

    def run() -> None:
        with screen.canvas() as canvas:
            show(canvas, frame_of("a", None))
            assert "\x1b[?25l" in screen.output
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run()
    assert screen.output.rfind("\x1b[?25h") > screen.output.rfind("\x1b[?25l")


def test_live_never_draws_more_lines_than_the_terminal_has() -> None:
    screen = Terminal(color_system=None)
    with screen.canvas() as canvas:
        show(canvas, tall(new=(20,)))
    assert "line 20" in screen.output
    assert "lines hidden:" in screen.output
    assert screen.output.split("step 1 of 10")[0].count("\n") < 12


def test_no_color_keeps_masks_and_news_visible() -> None:
    screen = Terminal(no_color=True)
    with screen.canvas() as canvas:
        show(canvas, frame_of("fresh", None, new=(0,)))
    assert not re.search(r"\x1b\[[\d;]*\b(3[0-8]|4[0-8]|9[0-7]|10[0-7])\b", screen.output)
    assert "\x1b[7mfresh" in screen.output
    assert "░" in screen.output


def test_a_terminal_without_utf8_gets_a_mask_it_can_show() -> None:
    screen = Terminal(encoding="ascii")
    with screen.canvas(end_ids=[1]) as canvas:
        show(canvas, frame_of("a", "<end>", None))
    assert "a$_" in re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", screen.output)


def test_what_is_printed_to_stdout_while_drawing_stays_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    with Terminal().canvas():
        print("the result")
    assert capsys.readouterr().out == "the result\n"


# --- the meter --------------------------------------------------------------------------------------------------------


def metered(screen: Terminal, **options: object) -> str:
    """What a run of three steps from the right leaves of the meter, its colours taken off."""
    with screen.canvas(meter=True, **options) as canvas:
        for frame in recording().frames():
            screen.now += 1
            canvas.update(frame, recording().pieces, num_forwards=frame.step, total_steps=3)
    return re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", screen.output)


def test_the_meter_stands_below_the_status_line_and_its_last_reading_stays() -> None:
    shown = metered(Terminal())
    drawn = re.findall(r"settled, .*\n(AR-ness .*?) *\n?\r", shown)
    assert drawn[0] == "AR-ness  local ▁▁▁▁▁▁▁▁ –      global ▁▁▁▁▁▁▁▁ –   (1 = left to right)"
    last = "AR-ness  local ▁▁▁▁▁▁▁▁ 0.00   global ▇▇▇▇▇▁▁▁ 0.67   (1 = left to right)"
    assert shown.endswith(last + "\n")
    assert last in metered(Terminal(), keep=True)


def test_without_it_the_drawing_has_no_meter() -> None:
    screen = Terminal()
    with screen.canvas() as canvas:
        show(canvas, frame_of("a", None))
    assert "AR-ness" not in screen.output


def test_the_meter_reads_steps_that_were_not_drawn() -> None:
    screen = Terminal()
    with screen.canvas(meter=True) as canvas:
        for frame in recording().frames():
            canvas.update(frame, recording().pieces, num_forwards=frame.step, total_steps=3)
    assert "global ▇▇▇▇▇▁▁▁ 0.67" in screen.output


def test_the_meter_fits_40_columns_and_any_height() -> None:
    screen = Terminal(width=40, color_system=None)
    with screen.canvas(meter=True) as canvas:
        show(canvas, tall(new=(20, 21)))
    drawing = screen.output.split("AR-ness")[0]
    assert "line 20" in drawing
    assert drawing.count("\n") < 12
    assert "AR-ness local ▇▇▇▇ 1.00 global" in screen.output
    assert all(cell_len(line) <= 40 for line in re.split(r"[\r\n]", metered(Terminal(width=40))))


def test_the_meter_of_a_terminal_without_utf8_is_plain() -> None:
    assert "global #####... 0.67" in metered(Terminal(encoding="ascii"))


def test_the_meter_of_a_run_that_never_began_says_nothing() -> None:
    screen = Terminal()
    with screen.canvas(meter=True):
        pass
    assert "AR-ness" not in screen.output
