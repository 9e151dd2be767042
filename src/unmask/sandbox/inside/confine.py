"""How a jail without bubblewrap closes itself: namespaces where the kernel allows them, Landlock in every case.

With bubblewrap the walls stand already, and all that is left to do here is to give up the user id where the supervisor
runs as root. References: user_namespaces(7), landlock(7).
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from typing import Any

_CLONE = {"user": 0x10000000, "mount": 0x00020000, "pid": 0x20000000, "net": 0x40000000, "ipc": 0x08000000}
_MS_RDONLY, _MS_NOSUID, _MS_NODEV, _MS_REC, _MS_PRIVATE, _MS_SLAVE = 1, 2, 4, 0x4000, 1 << 18, 1 << 19
_AT_RECURSIVE, _AT_FDCWD, _MOUNT_ATTR_RDONLY, _MOUNT_SETATTR = 0x8000, -100, 1, 442
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_NO_NEW_PRIVS = 38
_MAKE_BLOCK = 1 << 11
_EXECUTE, _WRITE, _READ, _READ_DIR = 1, 2, 4, 8
_CAPSET = {"x86_64": 126, "aarch64": 91}
_libc = ctypes.CDLL(None, use_errno=True)


def enter(config: dict[str, Any]) -> None:
    """Close the jail around this process. Raises OSError where a promised wall cannot be built."""
    if config["walls"] == "landlock":
        if config["namespaces"]:
            _unshare()
            _private_folder(config)
        if config["uid"] is not None:
            _drop(config["uid"])
        _drop_capabilities()
        _check(_libc.prctl(_NO_NEW_PRIVS, *(ctypes.c_ulong(v) for v in (1, 0, 0, 0))), "prctl(NO_NEW_PRIVS)")
        _landlock(config["readable"], [config["folder"]] if config["folder"] else [])
    elif config["uid"] is not None:
        _drop(config["uid"])


def stand_apart() -> None:
    """Enter a Landlock domain that forbids nothing but reaching into processes outside it (`/proc/PID/mem`, ptrace)."""
    if landlock_version() < 1:
        return
    _check(_libc.prctl(_NO_NEW_PRIVS, *(ctypes.c_ulong(v) for v in (1, 0, 0, 0))), "prctl(NO_NEW_PRIVS)")
    rules = struct.pack("Q", _MAKE_BLOCK)  # a domain has to handle something, and nobody makes block devices
    ruleset = _check(
        _libc.syscall(_LANDLOCK_CREATE, ctypes.c_char_p(rules), ctypes.c_size_t(len(rules)), ctypes.c_uint(0)),
        "landlock_create_ruleset",
    )
    _check(_libc.syscall(_LANDLOCK_RESTRICT, ruleset, ctypes.c_uint(0)), "landlock_restrict_self")
    os.close(ruleset)


def hide(is_hidden: bool) -> None:
    """Whether other processes of the same user may look into this one (PR_SET_DUMPABLE)."""
    _libc.prctl(4, ctypes.c_ulong(not is_hidden), *(ctypes.c_ulong(0) for _ in range(3)))


def _check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def _drop(uid: int) -> None:
    """Become an unprivileged user for good; all capabilities go with it."""
    os.setgroups([])
    os.setresgid(uid, uid, uid)
    os.setresuid(uid, uid, uid)


def _drop_capabilities() -> None:
    """Give up every capability: a root without them, or one of a user namespace, is an ordinary user (capset(2))."""
    header = struct.pack("=Ii", 0x20080522, 0)
    _check(_libc.syscall(_CAPSET[platform.machine()], ctypes.c_char_p(header), ctypes.c_char_p(bytes(24))), "capset")


def _unshare() -> None:
    is_root = os.geteuid() == 0
    uid, gid = os.geteuid(), os.getegid()
    flags = _CLONE["mount"] | _CLONE["pid"] | _CLONE["net"] | _CLONE["ipc"] | (0 if is_root else _CLONE["user"])
    _check(_libc.unshare(flags), "unshare")
    if not is_root:
        for name, text in (("setgroups", "deny"), ("uid_map", f"{uid} {uid} 1"), ("gid_map", f"{gid} {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    pid = os.fork()  # the first child is process 1 of the new namespace
    if pid:
        os.closerange(3, 64)
        os.waitpid(pid, 0)
        os._exit(0)
    _libc.prctl(1, ctypes.c_ulong(9), *(ctypes.c_ulong(0) for _ in range(3)))  # die with the process outside


def _private_folder(config: dict[str, Any]) -> None:
    folder = config["folder"]
    _check(_libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None), "mount(private)")
    attributes = struct.pack("QQQQ", _MOUNT_ATTR_RDONLY, 0, 0, 0)
    result = _libc.syscall(
        _MOUNT_SETATTR, _AT_FDCWD, b"/", _AT_RECURSIVE, ctypes.c_char_p(attributes), ctypes.c_size_t(len(attributes))
    )
    _check(result, "mount_setattr(read-only)")
    if os.path.isdir("/proc/self"):  # other processes' names
        _check(_libc.mount(b"tmpfs", b"/proc", b"tmpfs", _MS_RDONLY, b"size=4k,mode=0555"), "mount(/proc)")
    options = f"size={config['disk_bytes']},nr_inodes=10000,mode=0777".encode()
    _check(_libc.mount(b"tmpfs", os.fsencode(folder), b"tmpfs", _MS_NOSUID | _MS_NODEV, options), "mount(tmpfs)")


def landlock_version() -> int:
    """The kernel's Landlock ABI, 0 where there is none."""
    if platform.machine() not in ("x86_64", "aarch64"):
        return 0
    return max(0, int(_libc.syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint(1))))


def _landlock(readable: list[str], writable: list[str]) -> None:
    version = landlock_version()
    if version < 1:
        raise OSError(38, "this kernel has no Landlock")
    handled = (1 << 13) - 1  # ABI 1
    handled |= (1 << 13 if version >= 2 else 0) | (1 << 14 if version >= 3 else 0) | (1 << 15 if version >= 5 else 0)
    network = 3 if version >= 4 else 0
    scoped = 3 if version >= 6 else 0
    rules = struct.pack("QQQ", handled, network, scoped)[: 8 if version < 4 else 16 if version < 6 else 24]
    ruleset = _check(
        _libc.syscall(_LANDLOCK_CREATE, ctypes.c_char_p(rules), ctypes.c_size_t(len(rules)), ctypes.c_uint(0)),
        "landlock_create_ruleset",
    )
    for paths, rights in ((readable, _EXECUTE | _READ | _READ_DIR), (writable, handled & ~_EXECUTE & ~(1 << 15))):
        for path in paths:
            _allow(ruleset, path, rights)
    _check(_libc.syscall(_LANDLOCK_RESTRICT, ruleset, ctypes.c_uint(0)), "landlock_restrict_self")
    os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        if not os.path.isdir(path):
            rights &= _EXECUTE | _WRITE | _READ | 1 << 14
        if path == os.devnull:
            rights |= _WRITE
        rule = struct.pack("=Qi", rights, descriptor)
        _check(
            _libc.syscall(_LANDLOCK_ADD, ruleset, ctypes.c_int(1), ctypes.c_char_p(rule), ctypes.c_uint(0)),
            f"landlock_add_rule({path})",
        )
    finally:
        os.close(descriptor)
