"""`unmask …` inside the test's process: the entry point itself, with its own standard streams."""

import io
import subprocess
import sys
from dataclasses import dataclass
from typing import Any
from unittest import mock

from unmask.cli.main import main


@dataclass(frozen=True)
class Outcome:
    """What a shell sees of a command."""

    code: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        return self.out.decode("utf-8")


def unmask(*arguments: object, stdin: bytes = b"", terminal: bool = False) -> Outcome:
    """Run the command; anything but a clean exit comes through as the exception that it is.

    `terminal` makes all three streams look like a terminal.
    """
    given, out, err = (_Stream(data, terminal=terminal) for data in (stdin, b"", b""))
    patches: dict[str, Any] = {
        "argv": ["unmask", *(str(argument) for argument in arguments)],
        "stdin": given,
        "stdout": out,
        "stderr": err,
    }
    code = 0
    with mock.patch.multiple(sys, **patches):
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
    out.flush()
    err.flush()
    return Outcome(code, out.bytes.getvalue(), err.bytes.getvalue().decode("utf-8"))


def refusal(*arguments: object, stdin: bytes = b"") -> str:
    """The message of a command that must be refused: exit code 2, one line on stderr, nothing on stdout."""
    outcome = unmask(*arguments, stdin=stdin)
    assert outcome.code == 2, outcome
    assert outcome.out == b"", outcome
    assert outcome.err.startswith("error: "), outcome
    assert "Traceback" not in outcome.err
    return outcome.err.removeprefix("error: ").removesuffix("\n")


def start(*arguments: object, before: str = "") -> subprocess.Popen[bytes]:
    """The same in a process of its own that heeds Ctrl-C; `before` is Python that runs first."""
    code = (
        "import signal, sys\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a test run may ignore it
        f"{before}\nfrom unmask.cli.main import main\nsys.argv[0] = 'unmask'\nmain()\n"
    )
    command = [sys.executable, "-c", code, *(str(argument) for argument in arguments)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


class _Stream(io.TextIOWrapper):
    def __init__(self, data: bytes, *, terminal: bool) -> None:
        self.bytes = io.BytesIO(data)
        self._is_terminal = terminal
        super().__init__(self.bytes, encoding="utf-8", write_through=True)

    def isatty(self) -> bool:
        return self._is_terminal
