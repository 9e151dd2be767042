"""One jail: a zygote behind walls, and the commands that the supervisor sends it.

What the walls are made of is the back end's business (`backends.py`); this module starts the process, forks runs in
it, asks for their CPU time, ends them, and notices when the jail itself is lost.
"""

import array
import json
import os
import signal
import socket
import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from unmask.errors import SandboxError
from unmask.sandbox.verdict import Limits

_START_SECONDS = 60.0
_REPLY_SECONDS = 20.0
_LOOSE_REPLY_SECONDS = 5.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How to start a jail: the command, its environment, and what the zygote is told."""

    command: tuple[str, ...]
    environment: dict[str, str]
    config: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Ended:
    """How one child ended: wait status and CPU seconds."""

    pid: int
    status: int
    cpu_seconds: float

    @property
    def signal(self) -> int:
        """The signal that ended it, 0 for an exit."""
        return os.WTERMSIG(self.status) if os.WIFSIGNALED(self.status) else 0

    def describe(self) -> str:
        """In words, for a message."""
        if self.signal:
            try:
                return f"the process was ended by {signal.Signals(self.signal).name}"
            except ValueError:
                return f"the process was ended by signal {self.signal}"
        return f"the process ended itself with exit code {os.WEXITSTATUS(self.status)}"


class JailLost(SandboxError):
    """The zygote is gone or does not answer; the jail has to be replaced."""


class Jail:
    """A running jail. Use it from one thread at a time; `close` ends everything in it."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._process = subprocess.Popen(
                [*plan.command, json.dumps(plan.config)],
                env=plan.environment,
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                close_fds=True,
                start_new_session=True,
            )
        except OSError as error:
            ours.close()
            raise SandboxError(f"{plan.command[0]} cannot be started: {error.strerror}") from None
        finally:
            theirs.close()
        self._control = ours
        self._control.settimeout(_START_SECONDS)
        try:
            hello = self._receive()
        except JailLost:
            said = self._last_words()
            self.close()
            raise SandboxError(f"the jail did not start: {said or 'its process ended without a word'}") from None
        # a program in a loose jail might reach the zygote; in the others only a very busy machine delays it
        self._control.settimeout(_LOOSE_REPLY_SECONDS if plan.config["loose"] else _REPLY_SECONDS)
        if "error" in hello:
            self.close()
            raise SandboxError(f"the jail could not close its walls: {hello['error']}")
        self.interpreter = f"Python {hello['ready']}"

    def fork(self, role: str, limits: Limits, *, peer: socket.socket | None = None) -> tuple[socket.socket, int]:
        """Start a child for one run; return the socket to it and its id. `peer` is handed on and closed here."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            handed = [theirs.fileno()] + ([peer.fileno()] if peer is not None else [])
            self._send({"op": "fork", "role": role, "limits": asdict(limits)}, handed)
            reply = self._receive()
        except JailLost:
            ours.close()
            raise
        finally:
            theirs.close()
            if peer is not None:
                peer.close()
        if "pid" not in reply:
            ours.close()
            raise JailLost(f"the jail cannot start another process: {reply.get('error')}")
        return ours, int(reply["pid"])

    def usage(self) -> tuple[dict[int, float], int]:
        """CPU seconds of each running child so far, and the number of files in the private folder."""
        self._send({"op": "cpu"})
        reply = self._receive()
        return {int(pid): float(seconds) for pid, seconds in reply["cpu"].items()}, int(reply["files"])

    def end(self) -> tuple[dict[int, Ended], bool]:
        """End what still runs and clear the private folder: how each child ended, and whether all is clean again."""
        self._send({"op": "end"})
        reply = self._receive()
        return {int(entry[0]): Ended(*entry) for entry in reply["ended"]}, bool(reply["clean"])

    @property
    def pid(self) -> int:
        """The process that holds the jail."""
        return int(self._process.pid)

    def close(self) -> None:
        """End the jail and everything in it."""
        self._control.close()
        try:
            self._process.wait(timeout=0.5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        if self._process.stderr is not None:
            self._process.stderr.close()

    def kill(self) -> None:
        """End the jail at once, from any thread."""
        self._process.kill()

    def _send(self, message: dict[str, Any], handed: Sequence[int] = ()) -> None:
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", handed))] if handed else []
        try:
            self._control.sendmsg([json.dumps(message).encode()], rights)
        except OSError as error:
            raise JailLost(f"the jail is gone ({error.strerror or error})") from None

    def _receive(self) -> dict[str, Any]:
        try:
            data = self._control.recv(1 << 20)
        except TimeoutError:
            raise JailLost("the jail does not answer") from None
        except OSError as error:
            raise JailLost(f"the jail is gone ({error.strerror or error})") from None
        if not data:
            raise JailLost("the jail has ended")
        message: dict[str, Any] = json.loads(data)
        return message

    def _last_words(self) -> str:
        """What the command wrote to its standard error, once it has ended."""
        self._process.kill()
        assert self._process.stderr is not None
        lines = self._process.stderr.read(10_000).decode("utf-8", "replace").strip().splitlines()
        return lines[-1] if lines else ""
