"""The jail's first process: it loads the libraries once, and forks one child for each run.

It is started as `python -s -S -B -m inside.zygote CONFIG` with the control socket as standard input. It reads the
supervisor's short commands and never sees a program, a test or an answer: those go straight to the child, over sockets
that are handed on. So nothing of one run can be found in the memory of the next.

    fork  {"op": "fork", "role": "program", "limits": {...}}, one or two sockets  →  {"pid": 7}
    cpu   {"op": "cpu"}, CPU time of the running children and the number of files →  {"cpu": {"7": 0.25}, "files": 1}
    end   {"op": "end"}, kill what still runs and clear the private folder
                                          →  {"ended": [[pid, status, CPU seconds]], "clean": true}

End of file on the control socket ends the jail.
"""

from __future__ import annotations

import contextlib
import gc
import importlib.util
import json
import os
import shutil
import signal
import socket
import stat
import sys
import time
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from typing import Any

from . import confine, guard, judge, program, unittests

CONTROL = 3


def main() -> None:
    config = json.loads(sys.argv[1])
    sys.path.remove(os.environ.pop("PYTHONPATH"))  # it was there to find this package
    os.dup2(0, CONTROL)
    silence = os.open(os.devnull, os.O_RDWR)
    os.dup2(silence, 0)
    if silence != 0:
        os.close(silence)
    control = socket.socket(fileno=CONTROL)
    try:
        confine.enter(config)
    except OSError as error:
        control.sendall(json.dumps({"error": str(error)}).encode())
        return
    confine.hide(True)
    sys.path.extend(config["site"])
    sys.meta_path.append(_Packages(config["packages"]))
    _preload(config["preload"])
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal's Ctrl-C is for the supervisor
    if config["seccomp"]:
        guard.prepare(config["loose"], config["sees_host_files"], os.getpid())
    sys.argv = ["solution.py"]
    _clear_all(config["cleared"])  # of what the libraries have put there
    os.dup2(0, 1)
    os.dup2(0, 2)
    gc.collect()
    gc.freeze()
    control.sendall(json.dumps({"ready": sys.version.split()[0]}).encode())
    children: set[int] = set()
    while True:
        message, descriptors, _, _ = socket.recv_fds(control, 65536, 2)
        if not message:
            break
        request = json.loads(message)
        reply: dict[str, Any]
        if request["op"] == "fork":
            reply = _fork(request, config, descriptors, children, control)
        elif request["op"] == "cpu":
            spent = _cpu_of_all if config["loose"] and config["own_pids"] else _cpu_seconds
            reply = {
                "cpu": {str(pid): spent(pid) for pid in children},
                "files": _num_files(config["folder"] if config["own_pids"] else ""),
            }
        else:
            reply = _end(children, config)
        control.sendall(json.dumps(reply).encode())
    _end(children, config)


class _Packages:
    """Finds single packages whose folder's other contents are out of sight."""

    def __init__(self, places: dict[str, str]) -> None:
        self.places = places

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: Any = None) -> ModuleSpec | None:
        place = self.places.get(name)
        if place is None:
            return None
        start = os.path.join(place, "__init__.py")
        return importlib.util.spec_from_file_location(name, start, submodule_search_locations=[place])


def _preload(names: list[str]) -> None:
    """Import what programs are likely to want. What is not there is not missed before a program asks for it."""
    warnings.simplefilter("ignore")
    for name in names:
        with contextlib.suppress(ImportError):
            __import__(name)


def _fork(
    request: dict[str, Any],
    config: dict[str, Any],
    descriptors: list[int],
    children: set[int],
    control: socket.socket,
) -> dict[str, Any]:
    try:
        pid = os.fork()
    except OSError as error:
        for descriptor in descriptors:
            os.close(descriptor)
        return {"error": str(error)}
    if pid == 0:
        try:
            _child(request, config, descriptors, control)
        finally:
            os._exit(1)
    for descriptor in descriptors:
        os.close(descriptor)
    children.add(pid)
    return {"pid": pid}


def _child(request: dict[str, Any], config: dict[str, Any], descriptors: list[int], control: socket.socket) -> None:
    """Give up everything that a run does not need, then run it."""
    gc.enable()
    if config["loose"]:
        os.setsid()  # what it starts is not in the jail's own group
        confine.stand_apart()  # its jail shows it /proc, and the zygote there
        confine.hide(False)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    control.detach()
    kept = []
    for target, descriptor in enumerate(descriptors, CONTROL + 10):
        os.dup2(descriptor, target)
    for target in range(CONTROL + 10, CONTROL + 10 + len(descriptors)):
        kept.append(socket.socket(fileno=target))
    os.closerange(3, CONTROL + 10)
    os.closerange(CONTROL + 10 + len(descriptors), 1024)
    os.chdir(config["folder"] if config["folder"] else "/")
    limits = request["limits"]
    guard.limit({**limits, "loose": config["loose"]})
    if config["seccomp"]:
        guard.forbid(config["loose"], config["sees_host_files"])
    conn, peer = kept[0], kept[1] if len(kept) > 1 else None
    role = {"program": program.run, "judge": judge.run, "unittest": unittests.run}[request["role"]]
    try:
        role(conn, peer)
    except (OSError, ValueError):  # the other side has hung up
        pass
    finally:
        os._exit(0)  # at once: taking the interpreter down costs more than the run


def _cpu_seconds(pid: int) -> float:
    """CPU time of all threads of a child so far, by its process clock (clock_getcpuclockid(3))."""
    try:
        return time.clock_gettime((~pid << 3) | 2)
    except (OSError, OverflowError):
        return 0.0


def _cpu_of_all(child: int) -> float:
    """CPU time of a child and of everything it has started: all of the jail but its first two processes."""
    ticks = 0
    for name in os.listdir("/proc"):
        if name.isdigit() and int(name) not in (1, os.getpid()):
            try:
                with open(f"/proc/{name}/stat", "rb") as file:
                    fields = file.read().rpartition(b")")[2].split()
            except OSError:  # it has ended
                continue
            ticks += sum(
                map(int, fields[11:15])
            )  # user and system time, its own and of children that it has waited for
    return max(ticks / os.sysconf("SC_CLK_TCK"), _cpu_seconds(child))


def _num_files(folder: str) -> int:
    """Inodes in use in the private folder's file system."""
    if not folder:
        return 0
    found = os.statvfs(folder)
    return found.f_files - found.f_ffree


def _end(children: set[int], config: dict[str, Any]) -> dict[str, Any]:
    for pid in children:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
    ended = []
    for pid in list(children):
        _, status, usage = os.wait4(pid, 0)
        ended.append([pid, status, usage.ru_utime + usage.ru_stime])
        children.discard(pid)
    if config["own_pids"]:
        _sweep()
    return {"ended": ended, "clean": _clear_all(config["cleared"])}


def _sweep() -> None:
    """End every other process of the jail: the process namespace is ours alone."""
    try:
        os.kill(-1, signal.SIGKILL)
    except (ProcessLookupError, PermissionError):
        return
    deadline = time.monotonic() + 1
    while time.monotonic() < deadline:
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            pass
        try:
            os.kill(-1, 0)  # orphans are waited for by the jail's first process
        except OSError:
            return
        time.sleep(0.001)


def _clear_all(folders: list[str]) -> bool:
    cleared = [_clear(folder) for folder in folders]
    return all(cleared)


def _clear(folder: str) -> bool:
    """Empty the private folder. False where it cannot be done quickly: then the jail is thrown away."""
    try:
        if os.stat(folder).st_uid == os.getuid():
            os.chmod(folder, 0o700)
            os.utime(folder, (0, 0))
        names = os.listdir(folder)
        if not names:
            return True
        if len(names) > 1000:
            return False
        for name in names:
            path = os.path.join(folder, name)
            if stat.S_ISDIR(os.lstat(path).st_mode):
                shutil.rmtree(path)
            else:
                os.unlink(path)
        return not os.listdir(folder)
    except (OSError, RecursionError):
        return False


if __name__ == "__main__":
    main()
