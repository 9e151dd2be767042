"""A task as something to train on: one document of code, or a question with its answer."""

from unmask.data.task import Task

PREFILL = "Here is the code to solve this problem:\n```python\n"
QUESTION = "Please complete the following problem:\n```\n{}\n```\n"
SYSTEM = "You are a helpful assistant."
"""All three as the evaluation's preset `diffucoder` has them: a model is trained on the words that it is asked in."""


def as_document(task: Task) -> str:
    """The whole function with its docstring."""
    return task.prompt + task.reference_completion


def as_messages(task: Task, index: int) -> list[dict[str, str]]:
    """A question and its answer, in one of three wordings, in turn with `index`.

    >>> code = "def one():\\n    return 1\\n"
    >>> task = Task(task_id="x/0", prompt="def one():\\n", instruction="Return 1.", reference=code)
    >>> as_messages(task, 0)[0]
    {'role': 'user', 'content': 'Return 1.'}
    >>> as_messages(task, 0)[1]
    {'role': 'assistant', 'content': '```python\\ndef one():\\n    return 1\\n```'}
    """
    code = f"{task.reference.rstrip()}\n```"
    prompt = task.prompt.strip()
    question, answer = (
        (task.instruction, f"```python\n{code}"),
        (QUESTION.replace("{}", prompt, 1), f"{PREFILL}{code}"),
        (f"```python\n{prompt}\n```", f"```python\n{code}"),
    )[index % 3]
    turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return [{"role": "system", "content": SYSTEM}, *turns] if answer.startswith(PREFILL) else turns
