"""Several functions to one number: None, lost samples, weights, and functions that do what they must not."""

import math
import re
from typing import Any

import pytest
import torch

from unmask.errors import SandboxError, SettingsError, TaskError
from unmask.reward.combine import combine
from unmask.reward.function import LOST, NO_CODE, LogExtra, RewardFunction, name_of


def gives(*rewards: Any, name: str = "given") -> Any:
    """A function that returns these rewards, whatever it is asked."""

    def function(prompts: Any, completions: Any, **columns: Any) -> Any:
        return list(rewards)

    function.__name__ = name
    return function


def returns(value: Any) -> Any:
    def broken(prompts: Any, completions: Any, **columns: Any) -> Any:
        return value

    return broken


def test_rewards_are_weighted_and_added() -> None:
    functions = [(gives(1.0, 0.5, name="a"), 2.0), (gives(1, True, name="b"), 0.5)]
    rewards = combine(functions, ["p", "p"], ["x", "y"], {})
    assert rewards.total_N == [2.5, 1.5]
    assert rewards.by_function == {"a": [1.0, 0.5], "b": [1.0, 1.0]}
    assert rewards.num_lost == 0


def test_none_of_one_function_leaves_the_sample_to_the_others_as_in_trl() -> None:
    one, two = [1.0, None, None, 0.0], [0.25, 0.5, None, None]
    rewards = combine([(gives(*one, name="a"), 2.0), (gives(*two, name="b"), 1.0)], ["p"] * 4, ["x"] * 4, {})
    table = torch.tensor([[math.nan if v is None else v for v in column] for column in (one, two)]).T
    nansum = (table * torch.tensor([2.0, 1.0])).nansum(dim=1)  # what TRL computes
    assert rewards.total_N == [nansum[0], nansum[1], None, nansum[3]]  # but nothing at all is not 0
    assert rewards.num_lost == 0


def test_a_lost_sample_is_dropped_whatever_the_others_say(caplog: pytest.LogCaptureFixture) -> None:
    rewards = combine([(gives(LOST, 1.0, name="a"), 2.0), (gives(1.0, 1.0, name="b"), 0.5)], ["p"] * 2, ["x"] * 2, {})
    assert rewards.total_N == [None, 2.5]
    assert rewards.by_function == {"a": [None, 1.0], "b": [1.0, 1.0]}
    assert rewards.num_lost == 1
    assert "1 of 2 answers could not be judged and leave their groups (no reason was given)" in caplog.text


def test_answers_without_code_do_not_hide_a_sandbox_that_is_down() -> None:
    def judged(statuses: list[str]) -> RewardFunction:
        def function(completions: list[str], log_extra: LogExtra, **columns: Any) -> list[float]:
            log_extra("sandbox", statuses)
            log_extra("verdict", ["no room" if status == "sandbox_error" else "" for status in statuses])
            return [{"sandbox_error": LOST, "pass": 1.0}.get(status, 0.0) for status in statuses]

        return function

    with pytest.raises(SandboxError, match=r"none of the 2 answers of a batch that have code .*\(no room\)"):
        combine([(judged([NO_CODE, "sandbox_error", "sandbox_error"]), 1.0)], ["p"] * 3, ["x"] * 3, {})
    some = combine([(judged([NO_CODE, "sandbox_error", "pass"]), 1.0)], ["p"] * 3, ["x"] * 3, {})
    assert some.total_N == [0.0, None, 1.0]
    nothing = combine([(judged([NO_CODE, NO_CODE]), 1.0)], ["p"] * 2, ["x"] * 2, {})
    assert nothing.total_N == [0.0, 0.0]


def test_a_batch_that_is_lost_whole_is_an_error() -> None:
    def judged(prompts: Any, completions: Any, log_extra: Any, **columns: Any) -> list[float]:
        log_extra("verdict", ["the jail cannot be started"] * 2)
        return [LOST, LOST]

    message = "none of the 2 answers of a batch could be judged (the jail cannot be started), and there is nothing"
    with pytest.raises(SandboxError, match=re.escape(message)):
        combine([(judged, 2.0), (gives(1.0, 1.0), 0.5)], ["p"] * 2, ["x"] * 2, {})


def test_a_batch_of_nothing_is_nothing() -> None:
    rewards = combine([(gives(1.0), 1.0)], [], [], {"task_id": []})
    assert (rewards.total_N, rewards.by_function) == ([], {"given": []})


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "the reward function broken returned a NoneType, None; it must return a list with a number, or None"),
        (1.0, "the reward function broken returned a float, 1.0; it must return a list"),
        ("ab", "the reward function broken returned a str, 'ab'; it must return a list"),
        ({0: 1.0, 1: 1.0}, "the reward function broken returned a dict, {0: 1.0, 1: 1.0}; it must return a list"),
        ([1.0], "the reward function broken returned 1 rewards for 2 completions; it must return a list"),
        ([1.0] * 3, "returned 3 rewards for 2 completions"),
        ([1.0, "2"], "the reward function broken returned a str, '2' for completion 1; it must return"),
        ([[1.0], 1.0], "returned a list, [1.0] for completion 0"),
        ([1.0, math.inf], "returned a float, inf for completion 1; it must return a list with a number, or None, for"),
        ([1.0, 1j], "returned a complex, 1j for completion 1"),
        (torch.ones(2, 2), "returned a Tensor, tensor([1., 1.]) for completion 0"),
    ],
)
def test_what_a_function_must_not_return_is_told(value: Any, message: str) -> None:
    with pytest.raises(SettingsError, match=re.escape(message)):
        combine([(returns(value), 1.0)], ["p"] * 2, ["x"] * 2, {})


@pytest.mark.parametrize("value", [(1, 2), torch.tensor([1, 2]), torch.tensor([1.0, 2.0]).numpy(), iter([1.0, 2.0])])
def test_numbers_may_come_in_any_row(value: Any) -> None:
    assert combine([(returns(value), 1.0)], ["p"] * 2, ["x"] * 2, {}).total_N == [1.0, 2.0]


def test_a_function_that_raises_is_named() -> None:
    def divides(prompts: Any, completions: Any, **columns: Any) -> list[float]:
        return [1 / 0]

    message = "the reward function divides raised ZeroDivisionError: division by zero; repair it, or leave it out"
    with pytest.raises(SettingsError, match=message) as raised:
        combine([(divides, 1.0)], ["p"], ["x"], {})
    assert isinstance(raised.value.__cause__, ZeroDivisionError)


def test_a_function_without_columns_is_told_how_it_is_called() -> None:
    def narrow(prompts: Any, completions: Any) -> list[float]:
        return [1.0]

    message = (
        r"a reward function is called with task_id, prompts, completions, trainer_state, .* end its arguments with"
    )
    with pytest.raises(SettingsError, match=message):
        combine([(narrow, 1.0)], ["p"], ["x"], {"task_id": ["t"]})


def test_an_error_of_our_own_tree_passes_through() -> None:
    def untested(prompts: Any, completions: Any, **columns: Any) -> list[float]:
        raise TaskError("the task t has no tests")

    with pytest.raises(TaskError, match=r"^the task t has no tests$"):
        combine([(untested, 1.0)], ["p"], ["x"], {})


def test_a_column_of_another_length_is_refused() -> None:
    with pytest.raises(SettingsError, match="the column task_id has 1 entries for 2 completions; give as many"):
        combine([(gives(1, 1), 1.0)], ["p"] * 2, ["x"] * 2, {"task_id": ["t"]})
    with pytest.raises(SettingsError, match="the column prompts has 1 entries for 2 completions"):
        combine([(gives(1, 1), 1.0)], ["p"], ["x"] * 2, {})


def test_functions_are_told_apart_by_name_and_have_finite_weights() -> None:
    with pytest.raises(SettingsError, match=r"two reward functions are called given, .* rename one of them"):
        combine([(gives(1), 1.0), (gives(1), 1.0)], ["p"], ["x"], {})
    with pytest.raises(SettingsError, match="the weight of the reward function given is nan; it must be a finite"):
        combine([(gives(1), math.nan)], ["p"], ["x"], {})
    with pytest.raises(SettingsError, match="no reward function was given"):
        combine([], ["p"], ["x"], {})


def test_a_function_that_changes_its_arguments_changes_nothing_for_the_next() -> None:
    def greedy(prompts: Any, completions: Any, task_id: Any, **columns: Any) -> list[float]:
        completions[0][0]["content"] = ""
        prompts[0].pop()
        task_id.clear()
        return [0.0]

    def reads(prompts: Any, completions: Any, task_id: Any, **columns: Any) -> list[float]:
        return [float(len(completions[0][0]["content"]) + len(prompts[0]) + len(task_id))]

    prompts = [[{"role": "user", "content": "Write f."}]]
    completions = [[{"role": "assistant", "content": "abc"}]]
    rewards = combine([(greedy, 1.0), (reads, 1.0)], prompts, completions, {"task_id": ["t"]})
    assert rewards.by_function["reads"] == [5.0]
    assert (len(prompts[0]), completions[0][0]["content"]) == (1, "abc")


def test_a_function_written_for_trl_moves_over_unchanged() -> None:
    class PrefersAnswers:  # TRL takes callable objects, by their __name__
        __name__ = "prefers_answers"

        def __call__(self, completions: Any, answer: Any, trainer_state: Any, **kwargs: Any) -> list[float | None]:
            texts = [completion[0]["content"] for completion in completions]
            kwargs["log_extra"]("told", texts)
            kwargs["log_metric"]("share", sum(a == t for a, t in zip(answer, texts, strict=True)) / len(texts))
            scale = 1.0 + trainer_state.global_step
            return [
                None if wanted is None else scale * float(wanted == text)
                for wanted, text in zip(answer, texts, strict=True)
            ]

    def token_count(completion_ids: Any, **kwargs: Any) -> list[float]:
        return [float(len(ids)) for ids in completion_ids]

    class State:
        global_step = 1

    rewards = combine(
        [(PrefersAnswers(), 1.0), (token_count, 0.1)],
        [[{"role": "user", "content": "1 + 1?"}]] * 3,
        [[{"role": "assistant", "content": text}] for text in ("2", "3", "4")],
        {"answer": ["2", "2", None], "completion_ids": [[5], [5, 6], []]},
        trainer_state=State(),
    )
    assert rewards.by_function == {"prefers_answers": [2.0, 0.0, None], "token_count": [1.0, 2.0, 0.0]}
    assert rewards.total_N == pytest.approx([2.1, 0.2, 0.0])
    assert rewards.extra == {"told": ["2", "3", "4"]}
    assert rewards.metrics == {"share": pytest.approx(1 / 3)}


def test_a_partial_function_has_the_name_of_what_it_calls() -> None:
    from functools import partial

    assert name_of(partial(partial(returns, 1), 2)) == "returns"
    assert name_of(object()) == "object"
