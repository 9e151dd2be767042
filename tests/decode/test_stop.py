"""Stop strings: a row is done when its settled beginning holds one, and nothing before the string changes."""

import pytest

from unmask.decode.run import Generation, Run
from unmask.decode.session import Model
from unmask.decode.settings import DecodeSettings

from checkpoints import scripted, spell, tiny_model

KINDS = ("full", "causal", "block")
LENGTH = 24


@pytest.fixture(scope="module")
def models() -> dict[str, Model]:
    return {kind: tiny_model(kind) for kind in KINDS}


def decode(
    model: Model, prompts: list[str], stops: tuple[str, ...] = (), **how: object
) -> tuple[Run, list[Generation]]:
    settings = DecodeSettings(max_new_tokens=LENGTH, temperature=1.0, **how)  # type: ignore[arg-type]
    rows = [[*model.tokenizer.encode(prompt), *[None] * LENGTH] for prompt in prompts]
    run = model.run_rows(rows, settings, samples=range(len(rows)), end_ids=(), stop_strings=stops)
    return run, run.finish()


@pytest.mark.parametrize("kind", KINDS)
def test_what_stands_before_the_stop_string_is_the_same_with_fewer_forwards(
    kind: str, models: dict[str, Model]
) -> None:
    _, (whole, other) = decode(models[kind], ["one", "another"])
    stop = next(text for at in range(3, 9) if len(text := whole.text[at : at + 2]) == 2 and "�" not in text)
    _, (cut, beside) = decode(models[kind], ["one", "another"], (stop,))
    assert stop in cut.text
    assert cut.text.split(stop)[0] == whole.text.split(stop)[0]
    if stop not in other.text:
        assert beside.text == other.text
    if kind != "full":  # a full canvas may settle its beginning last
        assert cut.num_forwards < whole.num_forwards


def test_a_stop_string_across_two_steps_is_found(models: dict[str, Model]) -> None:
    _, (whole,) = decode(models["causal"], ["one"])
    stop = next(text for at in range(4, 12) if len(text := whole.text[at : at + 3]) == 3 and "�" not in text)
    run, (cut,) = decode(models["causal"], ["one"], (stop,))
    assert cut.text.endswith(stop)
    assert cut.num_tokens == cut.num_forwards < LENGTH
    assert cut.wasted_tokens == 0
    assert cut.finish_reason == "stop"
    assert bool(run.canvas.is_masked_BL.any())


def test_the_end_is_the_same_however_many_tokens_a_step_settles(models: dict[str, Model]) -> None:
    """All of a block in one step, and one token a step from left to right, where the tokens are the same."""
    text = "a = 1\nb = 2\nc = 3"
    at_once, one_by_one = (
        decode(scripted(models["full"], spell(text, start=3)), ["one"], ("b = ",), **how)
        for how in ({"policy": "threshold", "threshold": 1e-9}, {"policy": "left_to_right"})
    )
    (_, (many,)), (_, (single,)) = at_once, one_by_one
    assert many.text == single.text == "a = 1\nb = "
    assert (many.num_tokens, many.num_forwards, many.wasted_tokens) == (10, 1, LENGTH - 10)
    assert (single.num_tokens, single.num_forwards, single.wasted_tokens) == (10, 10, 0)


def test_a_stop_string_in_the_prompt_stops_nothing(models: dict[str, Model]) -> None:
    _, (whole,) = decode(models["causal"], ["one stop"])
    assert "stop" not in whole.text
    _, (same,) = decode(models["causal"], ["one stop"], ("stop",))
    assert same.text == whole.text


def test_the_reference_mode_runs_to_its_end(models: dict[str, Model]) -> None:
    _, (whole,) = decode(models["full"], ["one"], mode="reference", steps=LENGTH)
    _, (same,) = decode(models["full"], ["one"], (whole.text[:1],), mode="reference", steps=LENGTH)
    assert same.text == whole.text
    assert same.num_forwards == whole.num_forwards
