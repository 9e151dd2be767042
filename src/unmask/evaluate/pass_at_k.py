"""pass@k: the chance that at least one of k samples of a task passes (Chen et al., arXiv 2107.03374, section 2.1).

From n samples of which c pass, the unbiased estimate is 1 - C(n-c, k) / C(n, k), here as a product that neither
overflows nor cancels. The score of a benchmark is the mean over its tasks.
"""

import math
from collections.abc import Mapping, Sequence

from unmask.errors import SettingsError


def estimate(num_samples: int, num_correct: int, k: int) -> float:
    """The unbiased pass@k of one task.

    1 - C(n-c, k) / C(n, k) = 1 - product over i in n-c+1 … n of (1 - k / i)

    >>> estimate(4, 1, 2)
    0.5
    """
    if not 0 <= num_correct <= num_samples:
        raise SettingsError(f"{num_correct} of {num_samples} samples cannot pass; give 0 to {num_samples}")
    if k < 1:
        raise SettingsError(f"pass@{k} does not exist; k counts samples and is at least 1")
    if k > num_samples:
        raise SettingsError(f"pass@{k} needs {k} samples of a task, and there are {num_samples}; draw more or lower k")
    if num_samples - num_correct < k:
        return 1.0
    return 1.0 - math.prod(1.0 - k / i for i in range(num_samples - num_correct + 1, num_samples + 1))


def task_estimates(outcomes: Mapping[str, Sequence[bool]], k: int) -> dict[str, float]:
    """pass@k of each task, from whether each of its samples passed.

    >>> task_estimates({"HumanEval/0": [True, False], "HumanEval/1": [False, False]}, 1)
    {'HumanEval/0': 0.5, 'HumanEval/1': 0.0}
    """
    if not outcomes:
        raise SettingsError(f"pass@{k} of no tasks does not exist; give the outcomes of at least one task")
    task_id, fewest = min(((task_id, len(passed)) for task_id, passed in outcomes.items()), key=lambda item: item[1])
    if k > fewest:
        raise SettingsError(
            f"pass@{k} needs {k} samples of each task, and {task_id} has {fewest}; "
            + (f"draw more, or ask for k up to {fewest}" if fewest else "generate or judge its samples first")
        )
    return {task_id: estimate(len(passed), sum(map(bool, passed)), k) for task_id, passed in outcomes.items()}


def pass_at_k(outcomes: Mapping[str, Sequence[bool]], k: int) -> float:
    """The mean of the tasks' pass@k.

    >>> pass_at_k({"HumanEval/0": [True, False], "HumanEval/1": [False, False]}, 1)
    0.25
    """
    return math.fsum(task_estimates(outcomes, k).values()) / len(outcomes)
