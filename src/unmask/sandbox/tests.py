"""The kinds of tests that the sandbox can run, and how each one keeps its answers away from the program.

* `CallTests` – inputs and expected results. The program gets the inputs only; results come back as bytes and are
  compared outside its process.
* `AssertTests` – test code with `assert` statements. It runs in a second process, where the entry point is a stub that
  calls the program; the program never sees the test code.
* `UnitTests` – a `unittest.TestCase` (BigCodeBench). It mocks what the program uses, so it has to run inside the
  program's process: a weaker verdict, marked as such.

Values are builtins (int, float, complex, str, bytes, bool, None, list, tuple, set, frozenset, dict) nested in each
other, stored in the sandbox's wire format (`inside/values.py`). Nothing here is ever executed outside a sandbox.
"""

import ast
import hashlib
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from unmask.errors import SettingsError, did_you_mean
from unmask.sandbox.inside import values

Oracle = Literal[
    "equal",  # Python's ==, then EvalPlus's tolerance where it applies
    "set",  # equal as sets (EvalPlus, eight MBPP tasks)
    "not_none",  # only whether there is an answer (EvalPlus, three MBPP tasks)
    "anything",  # the official oracle accepts every answer (MBPP 164)
    "zero_or_equal",  # MBPP 295
    "surface_area",  # MBPP 581: a second formula is accepted
    "digit_distance",  # MBPP 558: a second formula is accepted
    "find_zero",  # HumanEval 32: the answer is a root of the polynomial
]
ORACLES: tuple[str, ...] = get_args(Oracle)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallTests:
    """Call `entry_point` with each input; compare each result with what is expected."""

    entry_point: str
    inputs: bytes
    """Encoded list of argument tuples."""
    expected: tuple[bytes, ...]
    """Encoded expected results, or digests of them where they are large (`values.digest`)."""
    oracle: Oracle = "equal"
    atol: float = 0.0
    """Absolute tolerance; at 0 floats, and flat lists and tuples of floats, still have EvalPlus's 1e-6."""
    call_cpu_seconds: tuple[float, ...] = ()
    """CPU limit of each call; empty: the run's limit only."""
    counts_all: bool = False
    """Make every call, also behind one that failed, and count those that pass (`Verdict.num_tests`): for rewards. What
    a call may use up of the run's limits is up to `call_cpu_seconds` and `call_wall_seconds`; see `slot.Run.count`."""
    call_wall_seconds: float | None = None
    """Wall-clock limit of each call, and of loading the program, where all are counted; None: the run's limit only."""

    def __post_init__(self) -> None:
        if self.oracle not in ORACLES:
            raise SettingsError(f"the oracle {self.oracle!r} is not known; {did_you_mean(self.oracle, ORACLES)}")
        if self.call_cpu_seconds and len(self.call_cpu_seconds) != len(self.expected):
            raise SettingsError(
                f"{len(self.call_cpu_seconds)} time limits were given for {len(self.expected)} calls; give one for each"
            )
        if self.call_wall_seconds is not None and not (self.counts_all and 0 < self.call_wall_seconds < float("inf")):
            raise SettingsError(
                f"call_wall_seconds={self.call_wall_seconds} has to be a positive, finite number, and is for calls "
                "that are all counted (counts_all); a run that ends with its first failure has its own wall limit"
            )

    @classmethod
    def of(
        cls,
        entry_point: str,
        inputs: Iterable[Sequence[Any]],
        expected: Iterable[Any],
        *,
        oracle: Oracle = "equal",
        atol: float = 0.0,
        call_cpu_seconds: Sequence[float] = (),
        counts_all: bool = False,
    ) -> "CallTests":
        """From plain values: `CallTests.of("add", [(1, 2), (3, 4)], [3, 7])`.

        Raises SettingsError for values that are not builtins, and when the two have different lengths.
        """
        calls = [tuple(arguments) for arguments in inputs]
        answers = tuple(_encoded(value) for value in expected)
        if len(calls) != len(answers):
            raise SettingsError(f"{len(calls)} inputs were given with {len(answers)} expected results; give as many")
        return cls(
            entry_point=entry_point,
            inputs=values.encode(calls),
            expected=answers,
            oracle=oracle,
            atol=atol,
            call_cpu_seconds=tuple(call_cpu_seconds),
            counts_all=counts_all,
        )


def _encoded(value: Any) -> bytes:
    values.encode(value)  # refuses what is no builtin
    return values.encode_compact(value)[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class AssertTests:
    """Test code that calls the program and asserts. It passes when it runs to its end."""

    entry_point: str
    code: str
    """Statements; the entry point's name is bound to a stub that calls the program. Other names that the code leaves
    open (a class that the program defines) are stubs of the program's own names."""
    setup: str = ""
    """Trusted code that runs first in the test's process: imports, and helper functions that the prompt gives. Names
    that it defines are never taken from the program."""
    writes_back: bool = False
    """Whether lists, sets and dicts that a test hands to the program show the program's changes afterwards."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitTests:
    """A `unittest` module that runs in the program's process, behind the program's own code."""

    code: str
    num_tests: int
    """Test methods in the trusted source; a run that reports another number does not pass."""
    test_class: str = "TestCases"
    environment: str = "bigcodebench"
    """Name of the Python environment that holds the libraries; see `unmask data setup`."""


Tests = CallTests | AssertTests | UnitTests


def num_scored(tests: Tests) -> int:
    """How many tests they are to a reward: calls, assertions, or one where they cannot be run apart.

    >>> num_scored(AssertTests(entry_point="f", code="assert f(1)\\nassert f(2)"))
    2
    >>> num_scored(AssertTests(entry_point="f", code="def check(c):\\n    assert c(1)\\n    assert c(2)\\ncheck(f)"))
    1
    """
    if isinstance(tests, CallTests):
        return len(tests.expected)
    return min(tests.num_tests, 1) if isinstance(tests, UnitTests) else len(assertions_apart(tests.code))


def assertions_apart(code: str) -> list[str]:
    """Test code as one program for each of its top-level assertions; all other statements stay with each.

    Code with fewer than two of them is one program, and code without a statement none.

    >>> assertions_apart("x = 1\\nassert f(x) == 2\\nassert f(2) == 3")
    ['x = 1\\nassert f(x) == 2', 'x = 1\\nassert f(2) == 3']
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # other people's escapes
            body = ast.parse(code).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return [code]  # the sandbox says what is wrong with it
    places = [place for place, statement in enumerate(body) if isinstance(statement, ast.Assert)]
    if len(places) <= 1:
        return [code] if body else []
    sources = [ast.unparse(statement) for statement in body]
    return ["\n".join(source for at, source in enumerate(sources) if at == kept or at not in places) for kept in places]


def digest_of(tests: Tests) -> str:
    """A hex digest of everything that a verdict depends on in the tests."""
    digest = hashlib.blake2b(type(tests).__name__.encode(), digest_size=16)
    for name in tests.__dataclass_fields__:
        if name in ("counts_all", "call_wall_seconds") and not getattr(tests, name):
            continue  # so that verdicts that were kept before there were these fields are still found
        digest.update(repr((name, getattr(tests, name))).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
