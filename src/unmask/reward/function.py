"""What a reward function is: TRL's signature, so that functions written for TRL's trainers move over unchanged.

    def reward(prompts, completions, **columns) -> list[float | None]

Everything is passed by name. `prompts` and `completions` are lists of texts, or of lists of messages
(`[{"role": "assistant", "content": text}]`). The columns are lists as long as the completions: `task` (our tasks),
`task_id`, `completion_ids`, and the `columns` of the tasks (`data/jsonl.py`). Beside them stand, as in TRL,
`trainer_state`, `log_extra(name, values)` for a value of each sample, and `log_metric(name, value)` for a number of the
batch, which is logged under its name.

What an entry of the list means:

    a number     the reward
    None         this function does not judge this sample; the others do (TRL's meaning)
    LOST (nan)   nobody can judge this sample: it leaves its group, and is no zero (a sandbox that failed)

What is called need not be a function: any object of the same signature will do (`model.py`).

TRL itself takes None and nan for the same, so these functions run there too, without the last distinction.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

from unmask.errors import SettingsError
from unmask.sandbox.job import Job
from unmask.sandbox.verdict import Verdict

LOST = float("nan")
"""The reward of a sample that could not be judged. Test with `math.isnan`: nan equals nothing."""

NO_CODE = "no_code"
"""What stands for a sandbox status where nothing was run."""

RewardFunction = Callable[..., Iterable[float | None]]
"""Takes the columns that it names, and the others as `**columns`."""

LogExtra = Callable[[str, Sequence[Any]], None]


class Judge(Protocol):
    """What rewards need of the sandbox (an executor, or a `VerdictCache` in front of one)."""

    def judge(self, jobs: Iterable[Job], /) -> Iterator[Verdict]:
        """The verdicts, in the order of the jobs."""
        ...


def name_of(function: Any) -> str:
    """The name under which a function's rewards are logged: its `__name__`, as in TRL."""
    while not hasattr(function, "__name__") and hasattr(function, "func"):  # functools.partial
        function = function.func
    return str(getattr(function, "__name__", type(function).__name__))


def text_of(completion: Any) -> str:
    """The text of a completion: itself, or the content of its one message.

    >>> text_of("x = 1"), text_of([{"role": "assistant", "content": "x = 1"}])
    ('x = 1', 'x = 1')
    """
    if isinstance(completion, str):
        return completion
    if isinstance(completion, Sequence) and len(completion) == 1:
        message = completion[0]
        if isinstance(message, dict) and isinstance(message.get("content"), str):
            return str(message["content"])
    raise SettingsError(
        f"a completion is {shown(completion)}; it has to be a text, or a list of one message with a text as its "
        'content, as in [{"role": "assistant", "content": "..."}]'
    )


def shown(value: Any) -> str:
    """A value for a message: its type, and how it begins."""
    text = repr(value)
    return f"a {type(value).__name__}, {text if len(text) <= 80 else text[:77] + '...'}"
