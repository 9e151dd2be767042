"""The replay page in a browser: what it shows at each step, how it is driven, and that it asks nobody."""

import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from unmask.trajectory import Commit, Step, Trajectory
from unmask.view.replay_html import page
from unmask.view.terminal import printable

if TYPE_CHECKING:
    from playwright.sync_api import Page

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
IS_REQUIRED = os.environ.get("UNMASK_REQUIRE_BROWSER") == "1"  # then a missing browser is a failure
HAS_PLAYWRIGHT = importlib.util.find_spec("playwright") is not None
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None and not IS_REQUIRED, reason="needs Chromium on the PATH"),
    pytest.mark.skipif(not HAS_PLAYWRIGHT and not IS_REQUIRED, reason="needs playwright (the dev extra)"),
]
Open = Callable[..., "Page"]

HOSTILE = "<img src=http://example.com/x onerror=alert(1)>"
PIECES = {1: "<user>\n", 2: "def", 3: " f", 4: "():\n", 5: "\treturn", 6: " '\udce6\udc97", 7: "\udca5'", 8: "<end>"}
PIECES |= {9: HOSTILE, 10: "\x1b[2J", 11: " g"}


def commits(*pairs: tuple[int, int], confidence: float = 0.9) -> Step:
    others = ((11, 0.0625), (9, 0.03125))
    return Step(commits=[Commit(0, position, token, confidence, 0.25, others) for position, token in pairs])


def written(**changes: Any) -> Trajectory:
    """An answer, one character of it in two tokens, with end tokens, masked again once."""
    fields: dict[str, Any] = {
        "initial_ids": [1, *[None] * 9],
        "steps": [
            commits((1, 2), (3, 4), (9, 8)),
            commits((2, 11), (6, 7), confidence=0.25),
            Step(remasked=[2, 6]),
            commits((2, 3), (5, 6), (6, 7)),
            commits((4, 5), (7, 9), (8, 10)),
        ],
        "model": "tiny",
        "end_ids": [8],
        "pieces": PIECES,
        "num_forwards": 5,
        "finish_reason": "stop",
    }
    return Trajectory(**{**fields, **changes})


def grown() -> Trajectory:
    """A hole that gets two more places, of which one is taken out again."""
    steps = [
        commits((1, 3)),
        Step(resized=[(2, 2)], commits=commits((2, 5)).commits),
        Step(resized=[(3, -1)], commits=commits((3, 11)).commits),
    ]
    return written(initial_ids=[2, None, None, None, 4], steps=steps, end_ids=[])


@pytest.fixture(scope="module")
def tab() -> "Iterator[Page]":
    """One tab for all tests: a new one costs more than most of them."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened.new_page()
        opened.close()


@pytest.fixture
def open_page(tab: "Page", tmp_path: Path) -> Iterator[Open]:
    """Opens the page of some runs; in the end, none has complained or asked for anything."""
    troubles: list[str] = []
    asked: list[str] = []
    opened: list[str] = []
    listeners = {
        "console": lambda message: troubles.append(message.text),
        "pageerror": lambda error: troubles.append(str(error)),
        "request": lambda request: asked.append(request.url),
    }

    def open_page(*runs: Trajectory, speed: float = 10.0, width: int = 1000, **media: Any) -> "Page":
        path = tmp_path / f"{len(opened)}.html"
        path.write_text(page(runs, speed=speed), encoding="utf-8")
        opened.append(path.as_uri())
        tab.set_viewport_size({"width": width, "height": 700})
        tab.emulate_media(color_scheme=media.get("color_scheme"), reduced_motion=media.get("reduced_motion"))
        tab.goto(path.as_uri())
        return tab

    for event, listener in listeners.items():
        tab.on(event, listener)
    tab.route("http*://**/*", lambda route: route.abort())
    yield open_page
    for event, listener in listeners.items():
        tab.remove_listener(event, listener)
    tab.unroute_all()
    assert (troubles, asked) == ([], opened)


def scrub(shown: "Page", step: int) -> None:
    shown.locator("#scrub").evaluate("(e, step) => { e.value = step; e.dispatchEvent(new Event('input')) }", step)


Look = list[tuple[str, set[str]]]
ROW = """number => [...document.querySelectorAll(".canvas")[number].querySelectorAll(".cell:not([hidden])")]
    .map((cell) => [cell.textContent, cell.className])"""


def row(shown: "Page", number: int = 0) -> Look:
    """Text and classes of the cells that are there, from left to right."""
    return [(text, set(classes.split())) for text, classes in shown.evaluate(ROW, number)]


def rows(shown: "Page", steps: Sequence[int]) -> list[Look]:
    """The same after scrubbing to each of `steps` in turn."""
    seen = shown.evaluate(
        f"""steps => steps.map((step) => {{
            const scrub = document.getElementById("scrub");
            scrub.value = step;
            scrub.dispatchEvent(new Event("input"));
            return ({ROW})(0);
        }})""",
        steps,
    )
    return [[(text, set(classes.split())) for text, classes in cells] for cells in seen]


def text_at(run: Trajectory, step: int) -> str:
    """What the canvas is to say, from the record: end tokens that were not given are one sign."""
    frame = next(frame for frame in run.frames() if frame.step == step)
    pieces = {**run.pieces, -1: "∎"}
    ids = [-1 if t in run.end_ids and i not in frame.given else t for i, t in enumerate(frame.ids)]
    return printable(Trajectory(initial_ids=[], pieces=pieces).text(ids, mask="░"))


def step_of(shown: "Page") -> str:
    return str(shown.locator("#where").text_content())


@pytest.mark.parametrize("run", [written(), grown()], ids=["written", "grown"])
def test_every_step_shows_the_text_and_the_states_of_its_frame_in_any_order(run: Trajectory, open_page: Open) -> None:
    shown = open_page(run)
    frames = {frame.step: frame for frame in run.frames()}
    forth = list(frames)
    order = [*forth, *reversed(forth), forth[-1], 0, forth[-2]]
    for step, seen in zip(order, rows(shown, order), strict=True):
        frame = frames[step]
        assert "".join(text for text, _ in seen) == text_at(run, step)
        assert len(seen) == len(frame.ids)
        assert {i for i, (_, classes) in enumerate(seen) if "new" in classes} == frame.new
        assert {i for i, (_, classes) in enumerate(seen) if "given" in classes} == frame.given
        blank = {i for i, (_, classes) in enumerate(seen) if classes & {"masked", "undone"}}
        assert blank == {i for i, token in enumerate(frame.ids) if token is None}


def test_a_place_that_was_masked_again_is_marked_in_that_step_alone(open_page: Open) -> None:
    shown = open_page(written())
    undone = [[i for i, (_, classes) in enumerate(seen) if "undone" in classes] for seen in rows(shown, (2, 3, 4))]
    assert undone == [[], [2, 6], []]
    assert shown.locator("#legend-undone").is_visible()


def test_doubt_is_shaded_and_underlined(open_page: Open) -> None:
    run = written(steps=[commits((1, 2), confidence=0.25), commits((2, 3)), Step()])
    shown = open_page(run)
    scrub(shown, 3)
    doubtful, sure = (shown.locator(".canvas .cell").nth(place) for place in (1, 2))
    shares = [float(e.evaluate("e => e.style.getPropertyValue('--doubt-share')")) for e in (doubtful, sure)]
    assert shares[0] > 5 * shares[1] > 0
    lines = [e.evaluate("e => getComputedStyle(e).textDecorationLine") for e in (doubtful, sure)]
    assert lines == ["underline", "none"]


def test_play_runs_to_the_end_stops_there_and_starts_over(open_page: Open) -> None:
    from playwright.sync_api import expect

    shown = open_page(written(), speed=200)
    play = shown.locator("#play")
    for _ in range(2):
        play.click()
        expect(shown.locator("#where")).to_have_text("step 5 of 5")
        expect(play).to_have_text("Play")
    assert shown.locator("#speed").input_value() == "200"


def test_pause_holds_the_step(open_page: Open) -> None:
    shown = open_page(written(), speed=1)
    shown.keyboard.press("Space")
    assert shown.locator("#play").text_content() == "Pause"
    shown.keyboard.press("Space")
    assert shown.locator("#play").text_content() == "Play"
    assert step_of(shown) == "step 0 of 5"


def test_keys_and_buttons_step_and_jump(open_page: Open) -> None:
    shown = open_page(written())
    seen = []
    for key in ("End", "ArrowLeft", "ArrowRight", "ArrowRight", "Home", "ArrowLeft", "ArrowRight"):
        shown.keyboard.press(key)
        seen.append(step_of(shown).split()[1])
    assert seen == ["5", "4", "5", "5", "0", "0", "1"]
    shown.get_by_role("button", name="One step forward").click()
    assert step_of(shown) == "step 2 of 5"
    shown.get_by_role("button", name="One step back").click()
    assert step_of(shown) == "step 1 of 5"
    shown.locator("#scrub").focus()
    shown.keyboard.press("ArrowRight")  # the slider's own key must not count twice
    assert step_of(shown) == "step 2 of 5"


def told(shown: "Page") -> dict[str, str]:
    """The tooltip's lines."""
    names = "[...document.querySelectorAll('#tip dt')].map((dt) => [dt.textContent, dt.nextSibling.textContent])"
    return dict(shown.evaluate(names))


def test_hovering_tells_what_the_model_thought(open_page: Open) -> None:
    shown = open_page(written())
    scrub(shown, 1)
    cell = shown.locator(".canvas .cell")
    cell.nth(3).hover()
    assert told(shown) == {
        "text": "():⏎",
        "position": "3",
        "step": "1",
        "confidence": "90.0 %",
        "entropy": "0.250 nats",
        "runners-up": f"·g  6.3 %\n{HOSTILE.replace(' ', '·')}  3.1 %",
    }
    cell.nth(2).hover()
    assert told(shown) == {"position": "2", "state": "masked, settles in step 2"}
    cell.nth(0).hover()
    assert told(shown) == {"text": "<user>⏎", "position": "0", "state": "given"}
    scrub(shown, 4)
    cell.nth(2).hover()
    assert told(shown)["step"] == "4 (of 2, 4)"
    cell.nth(6).hover()
    assert told(shown)["text"] == "bytes a5 27"


def test_a_token_can_be_reached_and_left_by_keyboard(open_page: Open) -> None:
    shown = open_page(written())
    shown.keyboard.press("End")
    shown.locator(".canvas .cell[tabindex='0']").focus()
    assert told(shown)["position"] == "1"
    shown.keyboard.press("ArrowDown")
    assert told(shown)["position"] == "2"
    shown.keyboard.press("ArrowLeft")
    assert told(shown)["step"] == "4 (of 2, 4)"
    shown.keyboard.press("Escape")
    assert shown.locator("#tip").is_hidden()


def test_the_keyboard_goes_past_what_is_folded_and_what_is_gone(open_page: Open) -> None:
    shown = open_page(written(initial_ids=[*[1] * 40, None], steps=[commits((40, 2))]))
    shown.keyboard.press("End")
    shown.locator(".canvas .cell[tabindex='0']").focus()
    for _ in range(9):
        shown.keyboard.press("ArrowUp")
    assert shown.evaluate("document.activeElement.dataset.index") == "35"
    shown.locator(".canvas summary").click()
    shown.locator(".canvas .cell").nth(2).focus()
    shown.keyboard.press("ArrowUp")
    assert told(shown)["position"] == "1"
    shown.locator(".canvas summary").click()
    shown.wait_for_function("document.querySelector('.canvas .cell[tabindex=\"0\"]').dataset.index === '35'")
    gone = open_page(written(initial_ids=[None, 2], steps=[Step(resized=[(0, -1)])], end_ids=[]))
    gone.keyboard.press("End")
    assert gone.locator(".canvas .cell[tabindex='0']").get_attribute("data-index") == "1"


@pytest.mark.parametrize("width", [1000, 360])
def test_a_token_reached_by_keyboard_is_never_behind_the_bar_and_keeps_its_tooltip(open_page: Open, width: int) -> None:
    steps = [commits((position, 4)) for position in range(120)]
    shown = open_page(written(initial_ids=[None] * 120, steps=steps), width=width)
    shown.keyboard.press("End")
    shown.locator(".canvas .cell").nth(119).focus()
    seen = "[document.activeElement.getBoundingClientRect().top, document.querySelector('.bar').getBoundingClientRect()"
    seen += ".bottom, document.getElementById('tip').hidden, scrollY]"
    scrolled = set()
    for _ in range(80):
        shown.keyboard.press("ArrowUp")
        top, bar, is_hidden, y = shown.evaluate(
            f"new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(() => done({seen}))))"
        )
        assert top >= bar
        assert not is_hidden
        scrolled.add(y)
    assert len(scrolled) > 3
    shown.evaluate("document.activeElement.blur()")
    shown.locator(".canvas .cell").nth(60).hover()
    shown.evaluate("scrollBy(0, 300)")
    shown.wait_for_function("document.getElementById('tip').hidden")


def test_the_mark_stands_over_the_thumb(open_page: Open) -> None:
    other = written(steps=[*written().steps[:4], commits((4, 5), (7, 9), (8, 11))])
    shown = open_page(written(), other, width=1200)
    track = shown.locator("#scrub").bounding_box()
    mark = shown.locator("#mark").evaluate("e => e.getBoundingClientRect().left + e.getBoundingClientRect().width / 2")
    assert mark == pytest.approx(track["x"] + track["width"] - 8, abs=1)


def test_a_word_without_end_fills_its_lines_as_a_terminal_does(open_page: Open) -> None:
    shown = open_page(written(initial_ids=[2, None], steps=[commits((1, 9))], pieces={2: "def ", 9: "x" * 200}))
    shown.keyboard.press("End")
    tops = shown.evaluate("[...document.querySelectorAll('.canvas .cell')].map((e) => e.getClientRects()[0].top)")
    assert tops[0] == tops[1]


def test_the_text_of_a_model_makes_no_elements(open_page: Open) -> None:
    shown = open_page(written())
    shown.keyboard.press("End")
    assert HOSTILE in "".join(text for text, _ in row(shown))
    assert shown.locator("img").count() == 0


def test_two_runs_stand_side_by_side_and_a_button_finds_where_they_part(open_page: Open) -> None:
    other = written(steps=[*written().steps[:3], commits((2, 11), (5, 6), (6, 7)), *written().steps[4:]])
    shown = open_page(written(), other, width=1200)
    boxes = [shown.locator(".canvas").nth(number).bounding_box() for number in (0, 1)]
    assert boxes[0]["x"] + boxes[0]["width"] <= boxes[1]["x"]
    assert boxes[0]["y"] == boxes[1]["y"]
    part = shown.locator("#part")
    assert part.text_content() == "part at step 4"
    assert shown.locator("#mark").is_visible()
    for step, differing in ((3, []), (4, [2]), (5, [2])):
        scrub(shown, step)
        for number in (0, 1):
            assert [i for i, (_, classes) in enumerate(row(shown, number)) if "differs" in classes] == differing
    part.click()
    assert step_of(shown) == "step 4 of 5"
    assert [text for text, _ in row(shown, 1)][2] == " g"


def test_answers_are_compared_from_their_beginnings_where_prompts_differ_in_length(open_page: Open) -> None:
    one = written(initial_ids=[1, None, None], steps=[commits((1, 2)), commits((2, 3))])
    two = written(initial_ids=[1, 9, None, None], steps=[commits((2, 2)), commits((3, 11))])
    shown = open_page(one, two, width=1200)
    scrub(shown, 2)
    differing = [[i for i, (_, classes) in enumerate(row(shown, n)) if "differs" in classes] for n in (0, 1)]
    assert differing == [[0, 2], [0, 1, 3]]


def test_the_shorter_of_two_runs_waits_at_its_end(open_page: Open) -> None:
    shown = open_page(written(), written(steps=written().steps[:2]))
    shown.keyboard.press("End")
    status = shown.locator(".status").all_text_contents()
    assert status[0].startswith("step 5 of 5")
    assert status[1].startswith("step 2 of 2")
    assert status[1].endswith("run over")


def test_two_equal_runs_say_so(open_page: Open) -> None:
    shown = open_page(written(), written())
    assert shown.locator("#part").text_content() == "same run"
    assert shown.locator("#part").is_disabled()
    assert shown.locator("#mark").is_hidden()


@pytest.mark.parametrize(
    ("plot", "column", "step"), [("order", 2.2, 3), ("order", 2.8, 3), ("ar-ness", 2.2, 2), ("ar-ness", 2.8, 3)]
)
def test_a_click_on_a_plot_goes_to_the_step_that_is_drawn_there(
    open_page: Open, plot: str, column: float, step: int
) -> None:
    """The order map has a column for each step, the curve a point."""
    shown = open_page(written())
    box = shown.locator(f".{plot} .plot svg").bounding_box()
    shown.mouse.click(box["x"] + box["width"] * column / 5, box["y"] + 20)
    assert step_of(shown) == f"step {step} of 5"


def test_the_order_map_has_a_place_for_what_was_never_filled_and_a_rule_for_given_text(open_page: Open) -> None:
    run = written(initial_ids=[2, None, None, 3, 4, None, 4], steps=[commits((1, 2)), commits((5, 2))], end_ids=[])
    shown = open_page(run)
    assert shown.locator(".order svg").get_attribute("viewBox") == "0 0 2 4"  # three places, and a gap
    assert shown.locator(".order .gap").get_attribute("y1") == "2.5"
    assert "given text" in str(shown.locator(".order figcaption").text_content())
    shown.locator(".canvas .cell").nth(2).hover()
    assert shown.locator(".order .row").get_attribute("y1") == "1.5"
    assert open_page(written()).locator(".order .gap").count() == 0


def test_the_caption_names_the_rule_for_ties_where_there_are_some(open_page: Open) -> None:
    rule = "the tokens of one step count from left to right"
    assert rule in str(open_page(written()).locator(".ar-ness figcaption").text_content())
    one_by_one = written(steps=[commits((1, 2)), commits((2, 3))])
    assert rule not in str(open_page(one_by_one).locator(".ar-ness figcaption").text_content())


def test_the_readout_is_the_ar_ness_so_far(open_page: Open) -> None:
    shown = open_page(written())
    readout = shown.locator(".readout")
    assert readout.text_content() == "local@1 –, global@1 –"
    shown.keyboard.press("End")
    assert readout.text_content() == "local@1 0.29, global@1 0.63"
    scrub(shown, 2)  # 1, 3, then 2 and 6, with 4, 5, 7 and 8 still open
    assert readout.text_content() == "local@1 0.00, global@1 0.50"


@pytest.mark.parametrize("runs", [[written()], [written(), grown()]], ids=["one", "two"])
def test_a_narrow_screen_scrolls_down_only(runs: Sequence[Trajectory], open_page: Open) -> None:
    shown = open_page(*runs, width=360)
    shown.keyboard.press("End")
    assert shown.evaluate("document.documentElement.scrollWidth") == 360
    shown.locator(".canvas .cell").nth(1).hover()
    box = shown.locator("#tip").bounding_box()
    assert box["x"] >= 0
    assert box["x"] + box["width"] <= 360


def test_the_page_is_dark_where_that_is_wanted(open_page: Open) -> None:
    backs = [
        open_page(written(), color_scheme=scheme).evaluate("getComputedStyle(document.body).backgroundColor")
        for scheme in ("light", "dark")
    ]
    assert backs == ["rgb(255, 255, 255)", "rgb(22, 22, 22)"]


def test_nothing_moves_but_by_the_reader(open_page: Open) -> None:
    shown = open_page(written(), reduced_motion="reduce", speed=200)
    shown.wait_for_timeout(100)
    assert step_of(shown) == "step 0 of 5"
    scrub(shown, 3)
    assert shown.evaluate("document.getAnimations().length") == 0


def test_a_long_prompt_is_folded_but_for_its_last_lines(open_page: Open) -> None:
    shown = open_page(written(initial_ids=[*[1] * 40, None], steps=[commits((40, 2))]))
    assert shown.locator(".canvas summary").text_content() == "35 given tokens before"
    assert not shown.locator(".canvas .cell").first.is_visible()
    assert shown.locator(".canvas .cell").nth(35).is_visible()
    shown.locator(".canvas summary").click()
    assert shown.locator(".canvas .cell").first.is_visible()


@pytest.mark.parametrize("num_runs", [1, 2])
def test_scrubbing_touches_only_the_cells_that_change(open_page: Open, num_runs: int) -> None:
    runs = [
        written(initial_ids=[None] * 512, steps=[commits(((place * stride) % 512, 2)) for place in range(512)])
        for stride in (197, 5)
    ]
    shown = open_page(*runs[:num_runs])
    scrub(shown, 200)
    touched = shown.evaluate("""async () => {
        const counts = [];
        const canvases = [...document.querySelectorAll(".canvas")];
        for (const step of [201, 241, 191]) {
            const seen = canvases.map(() => new Set());
            canvases.forEach((canvas, i) => {
                const watch = new MutationObserver((all) => all.forEach((m) => seen[i].add(m.target)));
                watch.observe(canvas, { subtree: true, childList: true, attributes: true });
            });
            const scrub = document.getElementById("scrub");
            scrub.value = step;
            scrub.dispatchEvent(new Event("input"));
            await new Promise((done) => setTimeout(done));
            counts.push(seen.map((one) => one.size));
        }
        return counts;
    }""")
    # what a jump settles or opens again, and the cell that was the newest before it or is after it; beside another run
    # also the cells that now differ from it, or no longer do
    most = [[moved * num_runs] * num_runs for moved in (2, 41, 51)]
    if num_runs == 1:
        assert touched == most
    assert all(0 < count <= bound[0] for found, bound in zip(touched, most, strict=True) for count in found)


def test_without_a_script_the_final_text_is_shown(tab: "Page", tmp_path: Path) -> None:
    (tmp_path / "page.html").write_text(page([written()]), encoding="utf-8")
    assert tab.context.browser is not None
    context = tab.context.browser.new_context(java_script_enabled=False)
    shown = context.new_page()
    shown.goto((tmp_path / "page.html").as_uri())
    assert shown.locator("pre").text_content() == printable(written().text(written().ids_at(5)))
    context.close()
