"""What the kernel enforces on one program: resource limits and a seccomp filter, both set by the program's own process
just before it reads any untrusted code.

The filter names what is forbidden. A jail already has no network, no host files and no foreign processes; the filter
takes away what would reach the jail's own helper process or escape the limits: new processes, signals to others (also
through `fcntl(F_SETOWN)`), tracing, sockets, memory that no limit counts (memfd, System V), mounts, namespaces, kernel
interfaces. A forbidden call fails with EPERM, so that a program sees an ordinary PermissionError.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import platform
import resource
import struct
from typing import Any

# name: (x86_64, aarch64); None where the architecture does not have it
_FORBIDDEN = {
    "fork": (57, None), "vfork": (58, None), "execve": (59, 221), "execveat": (322, 281),
    "socket": (41, 198), "connect": (42, 203), "accept": (43, 202), "accept4": (288, 242), "bind": (49, 200),
    "listen": (50, 201),
    "tkill": (200, 130), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    "pidfd_open": (434, 434), "pidfd_send_signal": (424, 424), "pidfd_getfd": (438, 438),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "kcmp": (312, 272),
    "process_madvise": (440, 440), "process_mrelease": (448, 448),
    "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7), "setxattrat": (463, 463),
    "memfd_create": (319, 279), "memfd_secret": (447, 447), "shmget": (29, 194), "shmat": (30, 196),
    "shmctl": (31, 195), "semget": (64, 190), "msgget": (68, 186), "mq_open": (240, 180), "userfaultfd": (323, 282),
    "mount": (165, 40), "umount2": (166, 39), "pivot_root": (155, 41), "chroot": (161, 51), "unshare": (272, 97),
    "setns": (308, 268), "open_tree": (428, 428), "move_mount": (429, 429), "fsopen": (430, 430),
    "fsconfig": (431, 431), "fsmount": (432, 432), "fspick": (433, 433), "mount_setattr": (442, 442),
    "open_by_handle_at": (304, 265), "name_to_handle_at": (303, 264),
    "bpf": (321, 280), "perf_event_open": (298, 241), "io_uring_setup": (425, 425), "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427), "fanotify_init": (300, 262),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "reboot": (169, 142), "swapon": (167, 224),
    "swapoff": (168, 225), "acct": (163, 89), "quotactl": (179, 60), "quotactl_fd": (443, 443),
    "sethostname": (170, 161), "setdomainname": (171, 162), "settimeofday": (164, 170),
    "clock_settime": (227, 112), "clock_adjtime": (305, 266), "adjtimex": (159, 171), "syslog": (103, 116),
    "iopl": (172, None), "ioperm": (173, None), "modify_ldt": (154, None), "personality": (135, 92),
    "setpriority": (141, 140), "sched_setaffinity": (203, 122), "sched_setscheduler": (144, 119),
    "sched_setparam": (142, 118), "sched_setattr": (314, 274), "ioprio_set": (251, 30), "migrate_pages": (256, 238),
    "move_pages": (279, 239), "vhangup": (153, 58), "lookup_dcookie": (212, 18),
}  # fmt: skip
_HOST_FILES = {  # what Landlock does not see; forbidden where host files are in sight
    "chmod": (90, None), "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452), "chown": (92, None),
    "fchown": (93, 55), "lchown": (94, None), "fchownat": (260, 54), "utime": (132, None), "utimes": (235, None),
    "utimensat": (280, 88), "futimesat": (261, None), "removexattr": (197, 14), "lremovexattr": (198, 15),
    "fremovexattr": (199, 16), "inotify_init": (253, None), "inotify_init1": (294, 26),
}  # fmt: skip
_LOOSE = {  # unittest-style programs may start processes and use sockets: their jail has a network of its own
    "fork", "vfork", "execve", "execveat", "socket", "connect", "accept", "accept4", "bind", "listen",
    "memfd_create", "sched_setaffinity", "setpriority", "pidfd_open",
}  # fmt: skip
_ARGUMENT: dict[str, tuple[int, int]] = {
    "clone": (56, 220), "clone3": (435, 435), "kill": (62, 129), "tgkill": (234, 131), "prlimit64": (302, 261),
    "fcntl": (72, 25), "ioctl": (16, 29), "socketpair": (53, 199),
}  # fmt: skip
_MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
_CLONE_THREAD = 0x10000
_STREAM, _SOCKET_FLAGS = 1, (0, 0x800, 0x80000, 0x80800)  # a datagram pair could send to named sockets
_FCNTL = (8, 10, 15)  # F_SETOWN, F_SETSIG, F_SETOWN_EX
_IOCTL = (0x5412, 0x541C, 0x8901, 0x8902)  # TIOCSTI, TIOCLINUX, FIOSETOWN, SIOCSPGRP

# classic BPF
_LD, _JEQ, _JGE, _JSET, _RET = 0x20, 0x15, 0x35, 0x45, 0x06
_NR, _ARCH, _ARG0, _ARG1 = 0, 4, 16, 24
_OWN_PID = b"\xf1\xf2\xf3\x7f"
_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_DENY = 0x00050000 | errno.EPERM
_ABSENT = 0x00050000 | errno.ENOSYS

_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _FILTER = 38, 22, 2
_libc = ctypes.CDLL(None, use_errno=True)


def supported() -> bool:
    """Whether a filter is known for this machine."""
    return platform.machine() in _MACHINES and hasattr(_libc, "prctl")


def limit(limits: dict[str, Any]) -> None:
    """Set the resource limits, hard and soft. `limits` has the field names of `sandbox.verdict.Limits`."""
    seconds = int(limits["cpu_seconds"]) + 2  # the supervisor stops a run earlier and more exactly
    for what, soft, hard in (
        (resource.RLIMIT_CPU, seconds, seconds + 1),
        (resource.RLIMIT_AS, limits["memory_bytes"], limits["memory_bytes"]),
        (resource.RLIMIT_FSIZE, limits["file_bytes"], limits["file_bytes"]),
        (resource.RLIMIT_NPROC, limits["processes"], limits["processes"]),
        (resource.RLIMIT_NOFILE, 64, 64) if not limits.get("loose") else (resource.RLIMIT_NOFILE, 256, 256),
        (resource.RLIMIT_CORE, 0, 0),
        (resource.RLIMIT_MEMLOCK, 0, 0),
        (resource.RLIMIT_MSGQUEUE, 0, 0),
    ):
        _, ceiling = resource.getrlimit(what)
        if ceiling != resource.RLIM_INFINITY:
            soft, hard = min(soft, ceiling), min(hard, ceiling)
        resource.setrlimit(what, (int(soft), int(hard)))
    _, ceiling = resource.getrlimit(resource.RLIMIT_STACK)
    stack = limits["memory_bytes"] if ceiling == resource.RLIM_INFINITY else min(limits["memory_bytes"], ceiling)
    resource.setrlimit(resource.RLIMIT_STACK, (int(stack), int(stack)))  # deep recursion is bounded by memory


def forbid(loose: bool, sees_host_files: bool) -> None:
    """Load the filter into this process, for good. Raises OSError where the kernel refuses."""
    ready = prepare(loose, sees_host_files, os.getppid())
    for place in ready.places_of_pid:
        struct.pack_into("I", ready.code, place, os.getpid())
    for arguments in ready.calls:
        if _libc.prctl(*arguments) != 0:
            raise OSError(ctypes.get_errno(), "prctl")


class Filter:
    """A filter in memory with all that loading it needs: made before forking, so that a child hardly touches memory."""

    def __init__(self, program: bytes) -> None:
        self.code = ctypes.create_string_buffer(program, len(program))
        self.places_of_pid = [at for at in range(0, len(program), 4) if program.startswith(_OWN_PID, at)]
        header = struct.pack("HxxxxxxP", len(program) // 8, ctypes.addressof(self.code))
        self._header = ctypes.create_string_buffer(header, len(header))
        words = (ctypes.c_ulong(0), ctypes.c_ulong(0))
        self.calls = (
            (ctypes.c_ulong(_PR_SET_NO_NEW_PRIVS), ctypes.c_ulong(1), ctypes.c_ulong(0), *words),
            (ctypes.c_ulong(_PR_SET_SECCOMP), ctypes.c_ulong(_FILTER), ctypes.byref(self._header), *words),
        )


@functools.lru_cache
def prepare(loose: bool, sees_host_files: bool, zygote: int) -> Filter:
    """The filter, with places for the process's own id; called once before forking."""
    (pid,) = struct.unpack("I", _OWN_PID)
    column, arch = _MACHINES[platform.machine()]
    forbidden: dict[str, tuple[int | None, int | None]] = {**_FORBIDDEN, **(_HOST_FILES if sees_host_files else {})}
    numbers = [
        number
        for name, entry in forbidden.items()
        if (number := entry[column]) is not None and not (loose and name in _LOOSE)
    ]
    out = [(_LD, 0, 0, _ARCH), (_JEQ, 1, 0, arch), (_RET, 0, 0, _KILL), (_LD, 0, 0, _NR)]
    if column == 0:
        out += [(_JGE, 0, 1, 0x40000000), (_RET, 0, 0, _DENY)]  # the x32 numbers
    for number in numbers:
        out += [(_JEQ, 0, 1, number), (_RET, 0, 0, _DENY)]

    def only_if(name: str, argument: int, tests: list[tuple[int, int]], then: int, otherwise: int) -> None:
        """For one call: `then` if any test (jump, value) holds on the low half of the argument, else `otherwise`."""
        body = [(_LD, 0, 0, argument)]
        for jump, value in tests:
            body += [(jump, 0, 1, value), (_RET, 0, 0, then)]
        body.append((_RET, 0, 0, otherwise))
        out.append((_JEQ, 0, len(body), _ARGUMENT[name][column]))
        out.extend(body)

    if loose:  # it may signal the processes that it starts, but not the jail's own
        for name in ("kill", "tgkill"):
            spared = [(_JEQ, zygote), (_JEQ, 1), (_JGE, 0x80000000)]
            only_if(name, _ARG0, spared, _DENY, _ALLOW)
    else:
        only_if("clone", _ARG0, [(_JSET, _CLONE_THREAD)], _ALLOW, _DENY)
        only_if("clone3", _ARG0, [], _ABSENT, _ABSENT)  # its flags cannot be read; C libraries fall back to clone
        only_if("kill", _ARG0, [(_JEQ, pid)], _ALLOW, _DENY)
        only_if("socketpair", _ARG1, [(_JEQ, _STREAM | flags) for flags in _SOCKET_FLAGS], _ALLOW, _DENY)
        only_if("tgkill", _ARG0, [(_JEQ, pid)], _ALLOW, _DENY)
    only_if("prlimit64", _ARG0, [(_JEQ, 0), (_JEQ, pid)], _ALLOW, _DENY)
    only_if("fcntl", _ARG1, [(_JEQ, command) for command in _FCNTL], _DENY, _ALLOW)
    only_if("ioctl", _ARG1, [(_JEQ, command) for command in _IOCTL], _DENY, _ALLOW)
    out.append((_RET, 0, 0, _ALLOW))
    return Filter(b"".join(struct.pack("HBBI", code, yes, no, value) for code, yes, no, value in out))
