"""Every error that `unmask` raises on purpose.

    UnmaskError
    ├── SettingsError      a setting breaks its rule, or two settings contradict each other
    ├── CanvasError        a prompt, a hole or a canvas does not fit
    ├── CheckpointError    a checkpoint is damaged, incomplete, or of a kind that cannot be read
    │   └── UnknownModelError
    ├── DownloadError      a file could not be fetched, or is not the file that was asked for
    ├── TextError          a tokenizer, a chat template or an input text cannot be used
    ├── TrajectoryError    a trajectory file cannot be read, or does not fit what is asked of it
    ├── SandboxError       no jail could be had, or one was lost; never a verdict about a program
    ├── TaskError          a task, a benchmark's data or a file of samples cannot be used
    ├── DataError          training data or its source cannot be used
    └── NumericsError      the network returned numbers that are not numbers

A message says, in this order: what was given, the rule it breaks, what to do next. The command line prints it
without a traceback and leaves with exit code 2, so a caller of the library writes

    try:
        model = unmask.load("diffucoder-7b-instruct")
    except unmask.UnmaskError as error:
        print(error)
"""

import difflib
from collections.abc import Iterable


class UnmaskError(Exception):
    """Base of the tree: anything the caller can put right."""


class SettingsError(UnmaskError, ValueError):
    """A setting breaks its rule, or two settings contradict each other."""


class CanvasError(UnmaskError, ValueError):
    """A prompt, a hole or a canvas does not fit."""


class CheckpointError(UnmaskError):
    """A checkpoint is damaged, incomplete, or of a kind that cannot be read."""


class UnknownModelError(CheckpointError):
    """A name is neither in the model table, nor a folder or file, nor a hub id."""


class DownloadError(UnmaskError):
    """A file could not be fetched, or is not the file that was asked for."""


class TextError(UnmaskError, ValueError):
    """A tokenizer, a chat template or an input text cannot be used."""


class TrajectoryError(UnmaskError):
    """A trajectory file cannot be read, or does not fit what is asked of it."""


class SandboxError(UnmaskError):
    """No jail could be had, or one was lost; never a verdict about a program."""


class TaskError(UnmaskError, ValueError):
    """A task, a benchmark's data or a file of samples cannot be used."""


class DataError(UnmaskError, ValueError):
    """Training data or its source cannot be used."""


class NumericsError(UnmaskError, ArithmeticError):
    """The network returned numbers that are not numbers."""


def did_you_mean(given: str, known: Iterable[str], *, limit: int = 3) -> str:
    """The nearest known words as the end of an error message.

    >>> did_you_mean("maskgit", ["entropy", "maskgit_plus", "origin"])
    'did you mean maskgit_plus? (known: entropy, maskgit_plus, origin)'
    >>> did_you_mean("zzz", ["entropy", "origin"])
    'known: entropy, origin'
    """
    names = list(known)
    near = difflib.get_close_matches(given.lower(), names, n=limit, cutoff=0.5)
    listing = ", ".join(names)
    return f"did you mean {' or '.join(near)}? (known: {listing})" if near else f"known: {listing}"
