"""What a decoding command does around the run: read the prompt, draw the run, keep its record, print its result.

Whatever ends a run early (Ctrl-C, numbers that are not numbers, a full disk), what it has come to is not lost: the
record so far is written, and the result printed even where the record could not be.
"""

import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unmask.errors import SettingsError, TextError
from unmask.trajectory import Trajectory, save

if TYPE_CHECKING:
    from rich.console import RenderableType

    from unmask.decode.run import Generation, Run
    from unmask.decode.session import Model
    from unmask.decode.settings import DecodeSettings


RUNNERS_UP = 3  # next best tokens that a kept trajectory names for each commit


def watch(run: "Run", *, quiet: bool, meter: bool = False) -> bool:
    """Run to the end, drawing the first row on a terminal; False when Ctrl-C ended it early."""
    from unmask.view.terminal import LiveCanvas

    total = run.settings.steps
    live = LiveCanvas(meter=meter, end_ids=run.trajectories[0].end_ids)
    if quiet or not live.is_drawn:
        return _drain(run)
    with live:
        try:
            for frame in run.trajectories[0].frames() if meter else ():  # what a run did before it was taken up
                live.follow(frame)
            live.update(run.frame(), run.pieces(), num_forwards=0, total_steps=total)
            for _ in run:
                live.update(run.frame(), run.pieces(), num_forwards=run.trajectories[0].num_forwards, total_steps=total)
        except KeyboardInterrupt:
            return False
    return True


def _drain(run: "Run") -> bool:
    try:
        for _ in run:
            pass
    except KeyboardInterrupt:
        return False
    return True


def check_live(*, live: bool, quiet: bool) -> None:
    """Refuse `--live` with `--quiet`; where there is no terminal to draw on, say so and go on."""
    if not live:
        return
    if quiet:
        raise SettingsError("--live draws on the terminal and --quiet keeps it empty; leave one of them out")
    from unmask.view.terminal import LiveCanvas

    if not LiveCanvas().is_drawn:
        print("--live has nothing to draw on: stderr is no terminal; the run goes on without", file=sys.stderr)


def check_writable(path: Path | None, *, option: str = "--trajectory") -> None:
    """Refuse a path that could not be written, before any work is done."""
    if path is None or (path.exists() and not path.is_file() and not path.is_dir()):  # a device, a pipe
        return
    folder = Path(os.path.realpath(path)).parent
    if path.is_dir() or not folder.is_dir():
        what = "is a folder" if path.is_dir() else f"lies in {folder}, which is not there"
        raise SettingsError(f"{option} {path} {what}; give a file in a folder that exists")
    try:  # a file is written beside the old one, and then takes its place
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise SettingsError(
            f"{option} {path} cannot be written ({os.strerror(error.errno or 0)}); give a file in another folder"
        ) from None


def tell_ineffective(model: "Model", settings: "DecodeSettings", given: set[str], *, n: int) -> None:
    """Say on stderr which of the given options change nothing with this model and these settings, and which go beyond
    what its drafter was trained for."""
    from unmask.decode.settings import ADAPTIVE_POLICIES

    config, drafter = model.backbone.config, model.drafter
    is_in_order = config.attention == "causal" and settings.decoder != "diffusion"
    if is_in_order:
        idle = sorted(given & {"policy", "policy_temperature", *ADAPTIVE_POLICIES, "steps"})
        if settings.temperature == 0:
            idle += sorted(given & {"top_p", "top_k"})
        if idle:
            names = ", ".join("--" + name.replace("_", "-") for name in idle)
            how = "one position per forward, left to right" if drafter is None else "tokens from left to right"
            print(f"no effect here: {names} (the model settles {how})", file=sys.stderr)
    if drafter is not None and (settings.block_length or 0) > drafter.block_length + 1:
        print(
            f"the drafter was trained for blocks of up to {drafter.block_length + 1}, and those of "
            f"{settings.block_length} will be drafted worse"
            + ("" if settings.decoder == "diffusion" else "; the answer is the same"),
            file=sys.stderr,
        )
    is_random = settings.temperature > 0 or settings.policy_temperature > 0 or settings.policy in ("random", "origin")
    if n > 1 and (settings.temperature == 0 if is_in_order else not is_random):
        print(f"the {n} answers will be the same: nothing is random at --temperature 0", file=sys.stderr)


def save_trajectories(path: Path | None, trajectories: Sequence[Trajectory], *, quiet: bool) -> None:
    """Keep the record, and say where. A run that never began leaves an older file alone."""
    if path is not None and trajectories:
        save(path, trajectories)
        if not quiet:
            print(f"trajectory kept in {path}; `unmask replay {path}` plays it", file=sys.stderr)


def print_card(results: Sequence["Generation"], *, first_step: int = 0) -> None:
    """The speed card of a batch, on stderr. A run that was taken up at `first_step` is judged by what it did itself."""
    from unmask.decode.session import num_forwards
    from unmask.view.card import SpeedCard

    before = [result.trajectory.steps[:first_step] for result in results]
    settled_before = sum(len(step.commits) for steps in before for step in steps)
    forwards_before = max(num_forwards(result.trajectory, steps) for result, steps in zip(results, before, strict=True))
    settled = sum(result.num_tokens + result.wasted_tokens for result in results)
    wasted = sum(result.wasted_tokens for result in results)
    done = [step for result in results for step in result.trajectory.steps[first_step:]]
    settled_now = max(0, settled - settled_before)
    card = SpeedCard(
        settled_tokens=settled_now,
        num_forwards=max(result.num_forwards for result in results) - forwards_before,
        positions_computed=sum(result.positions_computed for result in results),
        wasted_tokens=min(wasted, settled_now),
        seconds=results[0].seconds,
        rows=len(results),
        drafted_tokens=sum(len(step.drafted) for step in done),
        accepted_tokens=sum(step.num_accepted for step in done),
    )
    print(card.format(), file=sys.stderr)


def print_results(results: Sequence["Generation"], *, as_json: bool) -> None:
    """The texts, or one JSON object: the first answer's fields, and all answers when there are several."""
    if as_json:
        payload: dict[str, Any] = results[0].to_json()
        if len(results) > 1:
            payload["answers"] = [result.to_json() for result in results]
        print_line(json.dumps(payload, ensure_ascii=False))
        return
    for number, result in enumerate(results, 1):
        if len(results) > 1:
            print_line(f"=== answer {number} of {len(results)} ===")
        print_line(result.text)


def print_line(text: str) -> None:
    """Text and a newline."""
    print_text(text + "\n")


def print_rich(*shown: "RenderableType") -> None:
    """Tables and the like: on a terminal as wide as it is, elsewhere wide enough that no figure is cut. Where standard
    output lacks a letter, another of the same width stands for it."""
    from rich.console import Console

    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 200, highlight=False)
    with console.capture() as captured:
        for one in shown:
            console.print(one)
    text, encoding = captured.get(), sys.stdout.encoding or "utf-8"
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        text = text.replace(" ±", "+-").replace("–", "-").encode(encoding, "replace").decode(encoding)
    sys.stdout.write(text)


def print_text(text: str) -> None:
    """Text in UTF-8, whatever the terminal's encoding says; a terminal gets no control characters."""
    if sys.stdout.isatty():
        from unmask.view.terminal import printable

        text = printable(text)
    sys.stdout.buffer.write(text.encode("utf-8", "replace"))
    sys.stdout.buffer.flush()


def read_prompt(prompt: str) -> str:
    """The prompt itself, or standard input for "-"; it must not be empty."""
    from unmask.decode.session import require_text

    text = decode_utf8(sys.stdin.buffer.read(), "standard input") if prompt == "-" else prompt
    require_text(text)
    return text


def decode_utf8(data: bytes, where: str) -> str:
    """Bytes as text, exactly; TextError names the first byte that is not UTF-8."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise TextError(
            f"{where} is not UTF-8: byte {error.start} (line {line}) is 0x{data[error.start]:02x}; "
            "convert it first, as in `iconv -f latin1 -t utf-8`"
        ) from None
