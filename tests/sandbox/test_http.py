"""The executor behind HTTP against a small service that speaks SandboxFusion's `/run_code`.

The service runs what it is sent on this machine without any isolation, as SandboxFusion's own default does, so the
programs here are tame.
"""

import contextlib
import json
import socket
import subprocess
import sys
import tempfile
import threading
import time
from base64 import b64encode
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from unmask.errors import SandboxError, SettingsError
from unmask.sandbox.executor import HttpExecutor, Job, open_executor
from unmask.sandbox.inside import values
from unmask.sandbox.tests import AssertTests, CallTests, Tests, UnitTests
from unmask.sandbox.verdict import Limits, Verdict

KEPT_OUTPUT = 1 << 20
"""Bytes of each stream that SandboxFusion keeps."""

LIMITS = Limits(wall_seconds=20)
CALLS = CallTests.of("f", [(1,), (41,)], [2, 42])
ASSERTS = AssertTests(entry_point="f", code="assert f(1) == 2\nassert f(41) == 42", setup="import math")
UNITS = UnitTests(
    code="""
import unittest
class TestCases(unittest.TestCase):
    def test_one(self):
        self.assertEqual(f(1), 2)
    def test_two(self):
        self.assertEqual(f(41), 42)
""",
    num_tests=2,
)
KINDS = {"calls": CALLS, "asserts": ASSERTS, "unittest": UNITS}
RIGHT = "def f(x):\n    return x + 1\n"

Answer = Callable[[dict[str, Any]], Any]


class Service(ThreadingHTTPServer):
    """`answer` makes the response to a request: a JSON value, bytes as they stand, or an int (an HTTP error)."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.answer: Answer = run_code
        self.requests: list[tuple[str, dict[str, Any]]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    @contextlib.contextmanager
    def answering(self, answer: Answer) -> Iterator[None]:
        self.answer = answer
        try:
            yield
        finally:
            self.answer = run_code


class Handler(BaseHTTPRequestHandler):
    server: Service

    def do_POST(self) -> None:
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append((self.path, request))
        answer = self.server.answer(request) if self.path == "/run_code" else 404
        if isinstance(answer, int):
            self.send_error(answer)
            return
        body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def run_code(request: dict[str, Any]) -> dict[str, Any]:
    """What SandboxFusion answers for a Python program."""
    with tempfile.TemporaryDirectory() as folder:
        script = Path(folder, "program.py")
        try:
            script.write_text(request["code"], encoding="utf-8")
            done = subprocess.run(
                [sys.executable, "-I", str(script)], capture_output=True, timeout=request["run_timeout"], cwd=folder
            )
        except UnicodeError as error:
            return {"status": "SandboxError", "message": str(error), "run_result": None}
        except subprocess.TimeoutExpired:
            return {
                "status": "Failed",
                "message": "",
                "run_result": {"status": "TimeLimitExceeded", "return_code": None},
            }
        paths = {name: Path(folder, name) for name in request.get("fetch_files", [])}
        files = {name: b64encode(path.read_bytes()).decode() for name, path in paths.items() if path.is_file()}
    return finished(done.stdout, done.stderr, done.returncode) | {"files": files}


def finished(stdout: bytes | str, stderr: bytes | str = b"", code: int = 0) -> dict[str, Any]:
    out, err = (
        text if isinstance(text, str) else text[:KEPT_OUTPUT].decode("utf-8", "replace") for text in (stdout, stderr)
    )
    result = {"status": "Finished", "execution_time": 0.1, "return_code": code, "stdout": out, "stderr": err}
    return {"status": "Failed" if code else "Success", "message": "", "compile_result": None, "run_result": result}


@pytest.fixture(scope="module")
def service() -> Iterator[Service]:
    with Service() as server, pytest.MonkeyPatch.context() as patch:
        patch.setenv("no_proxy", "127.0.0.1")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def executor(service: Service) -> Iterator[HttpExecutor]:
    with HttpExecutor(service.url + "/", workers=2) as found:
        yield found


def judged(executor: HttpExecutor, code: str, tests: Tests, limits: Limits = LIMITS) -> Verdict:
    (verdict,) = executor.judge([Job(code=code, tests=tests, limits=limits)])
    return verdict


# Verdicts

EVERY_KIND = pytest.mark.parametrize("kind", KINDS)


@EVERY_KIND
def test_a_right_program_passes(executor, service, kind):
    verdict = judged(executor, RIGHT, KINDS[kind])
    assert verdict.passed
    assert verdict.backend == service.url


@EVERY_KIND
@pytest.mark.parametrize(
    "code",
    [
        pytest.param("def f(x):\n    return x + 2\n", id="wrong"),
        pytest.param("def f(x):\n    raise ValueError('no')\n", id="raises"),
        pytest.param("def f(x):\n    raise SystemExit(0)\n", id="exits"),
        pytest.param("import sys\ndef f(x):\n    return x + 1\nsys.exit(0)\n", id="exits-on-load"),
        pytest.param("def g(x):\n    return x + 1\n", id="another-name"),
        pytest.param("class E:\n    def __eq__(self, o):\n        return 1\ndef f(x):\n    return None\n", id="none"),
    ],
)
def test_a_wrong_program_fails(executor, kind, code):
    verdict = judged(executor, code, KINDS[kind])
    assert verdict.status == "fail"
    assert verdict.message


@EVERY_KIND
def test_a_program_that_leaves_its_process_never_passes(executor, kind):
    verdict = judged(executor, "import os\ndef f(x):\n    os._exit(0)\n", KINDS[kind])
    assert verdict.status == "crash"


@EVERY_KIND
def test_a_program_that_does_not_parse_is_a_syntax_error(executor, kind):
    verdict = judged(executor, "def f(x)\n    return x + 1\n", KINDS[kind])
    assert verdict.status == "syntax_error"


@EVERY_KIND
def test_a_program_that_never_ends_is_a_timeout(executor, kind):
    verdict = judged(executor, "def f(x):\n    while True: pass\n", KINDS[kind], Limits(wall_seconds=0.6))
    assert verdict.status == "timeout"
    assert verdict.message == "the run took more than 0.6 s"


@EVERY_KIND
def test_only_calls_are_judged_outside_the_programs_process(executor, kind):
    for code in (RIGHT, "def f(x):\n    return 0\n"):
        assert judged(executor, code, KINDS[kind]).is_in_process == (kind != "calls")


def test_an_object_that_equals_everything_does_not_pass_by_calls(executor):
    for base in ("int", "object"):
        code = f"class Yes({base}):\n    def __eq__(self, other):\n        return True\ndef f(x):\n    return Yes()\n"
        assert judged(executor, code, CALLS).status == "fail"


def test_a_failed_call_is_named(executor):
    verdict = judged(executor, "def f(x):\n    return 2\n", CALLS)
    assert (verdict.failed_test, verdict.num_tests) == (1, 1)
    assert verdict.message == "f(41) returned 2, expected 42"
    verdict = judged(executor, "def f(x):\n    return {1: 2}[x]\n", CALLS)
    assert (verdict.failed_test, verdict.message) == (1, "raised KeyError: 41")


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (RIGHT, ("pass", None, 3)),
        ("def f(x):\n    return x + 1 if x else None", ("fail", 0, 2)),
        ("def f(x):\n    return x + 1 + 0 // (x - 1)", ("fail", 1, 2)),
        ("import os\ndef f(x):\n    return os._exit(0) if x == 1 else x + 1", ("crash", 1, 2)),
        ("import os\nos._exit(0)", ("crash", 0, 0)),
        ("def f(x) return x", ("syntax_error", 0, 0)),
    ],
)
def test_every_call_is_counted_where_that_is_asked_for(executor, code, expected):
    tests = CallTests.of("f", [(0,), (1,), (2,)], [1, 2, 3], counts_all=True)
    verdict = judged(executor, code, tests)
    assert (verdict.status, verdict.failed_test, verdict.num_tests) == expected, verdict


def test_tolerances_and_oracles_are_those_of_every_executor(executor):
    near = CallTests.of("f", [(1,)], [1.0])
    assert judged(executor, "def f(x):\n    return 1.0000000001\n", near).passed
    assert not judged(executor, "def f(x):\n    return 1.001\n", near).passed
    as_sets = CallTests.of("f", [(1,)], [[1, 2]], oracle="set")
    assert judged(executor, "def f(x):\n    return [2, 1, 1]\n", as_sets).passed


def test_what_a_program_prints_is_not_read_as_a_result(executor):
    noisy = "def f(x):\n    print('E', x)\n    return x + 1\n"
    assert judged(executor, noisy, CALLS).passed
    assert not judged(executor, "def f(x):\n    print(x + 1)\n", CALLS).passed


def test_skipped_tests_do_not_pass(executor):
    code = RIGHT + "import unittest\nunittest.TestCase.setUp = lambda self: self.skipTest('')\n"
    assert judged(executor, code, UNITS).status == "fail"


def test_fewer_tests_than_the_source_has_do_not_pass(executor):
    more = UnitTests(code=UNITS.code, num_tests=3)
    verdict = judged(executor, RIGHT, more)
    assert (verdict.status, "another number of tests ran" in verdict.message) == ("fail", True)


def test_verdicts_come_in_the_order_of_the_jobs(executor):
    codes = [RIGHT if number % 3 else "def f(x):\n    return 0\n" for number in range(7)]
    verdicts = list(executor.judge(Job(code=code, tests=CALLS, limits=LIMITS) for code in codes))
    assert [verdict.passed for verdict in verdicts] == [code == RIGHT for code in codes]


def test_the_request_states_the_limits_and_never_the_expected_results(executor, service):
    service.requests.clear()
    tests = CallTests.of("f", [("question",)], ["a secret answer"])
    judged(executor, RIGHT, tests, Limits(wall_seconds=7, memory_bytes=512 << 20))
    ((path, request),) = service.requests
    assert path == "/run_code"
    assert (request["language"], request["run_timeout"], request["memory_limit_MB"]) == ("python", 7, 512)
    assert "secret" not in request["code"]
    assert values.encode("a secret answer").hex() not in request["code"]


# Reference answers


def test_call_gives_what_a_program_returns(executor):
    run = executor.call("def f(x, y):\n    return {x: [y]}\n", "f", values.encode([(1, 2), ("a", None)]), LIMITS)
    assert [values.decode(answer) for answer in run.answers] == [{1: [2]}, {"a": [None]}]
    assert (run.cpu_seconds, run.error) == ((0.0, 0.0), "")


def test_call_says_where_a_program_stopped(executor):
    run = executor.call("def f(x):\n    return 6 // x\n", "f", values.encode([(2,), (0,), (3,)]), LIMITS)
    assert [values.decode(answer) for answer in run.answers] == [3]
    assert "raised ZeroDivisionError" in run.error


# The service fails


@EVERY_KIND
@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(500, id="500"),
        pytest.param(404, id="404"),
        pytest.param(b"<html>busy</html>", id="html"),
        pytest.param(b"", id="nothing"),
        pytest.param([], id="a-list"),
        pytest.param({}, id="no-fields"),
        pytest.param({"status": "SandboxError", "message": "disk full", "run_result": None}, id="its-own-error"),
        pytest.param({"status": "SandboxError", "message": None, "run_result": {}}, id="an-error-without-words"),
    ],
)
def test_a_service_that_fails_is_no_verdict_about_the_program(executor, service, kind, answer):
    with service.answering(lambda _: answer):
        verdict = judged(executor, RIGHT, KINDS[kind])
    assert verdict.status == "sandbox_error"
    assert f"the sandbox at {service.url}" in verdict.message
    assert judged(executor, RIGHT, KINDS[kind]).passed  # and the next one is judged again


def test_the_service_s_own_words_are_passed_on(executor, service):
    with service.answering(lambda _: {"status": "SandboxError", "message": "disk full", "run_result": None}):
        assert judged(executor, RIGHT, CALLS).message == f"the sandbox at {service.url} failed: disk full"


def test_a_service_that_goes_down_is_no_verdict_about_the_program():
    with Service() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        found = HttpExecutor(server.url, workers=1)
        server.shutdown()
        thread.join()
    with found:
        started = time.monotonic()
        verdict = judged(found, RIGHT, CALLS)
        assert verdict.status == "sandbox_error"
        assert "cannot be used (" in verdict.message
        with pytest.raises(SandboxError, match=r"cannot be used"):
            found.call(RIGHT, "f", values.encode([(1,)]), LIMITS)
        assert time.monotonic() - started < 5


# At the start


def test_the_service_names_itself_and_its_python(executor, service):
    assert executor.name == service.url
    assert executor.interpreter == f"Python {sys.version.split()[0]}"
    assert "whatever the service isolates" in executor.guarantees


def test_an_address_is_a_back_end(service):
    with open_executor(service.url, workers=1) as found:
        assert isinstance(found, HttpExecutor)


def test_a_wrong_address_is_said_at_the_start(service):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{closed.getsockname()[1]}"
        with pytest.raises(SandboxError, match=rf"the sandbox at {address} cannot be used \(.*refused.*/run_code"):
            HttpExecutor(address)
    with pytest.raises(SandboxError, match=r"cannot be used \(.*Not Found.*it must speak SandboxFusion's /run_code"):
        HttpExecutor(service.url + "/elsewhere")


def test_no_worker_is_refused(service):
    with pytest.raises(SettingsError, match="--workers 0 is not a number of workers; it must be at least 1"):
        HttpExecutor(service.url, workers=0)


# Odd services and odd programs


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param({"status": "Success", "run_result": "done"}, id="text-for-an-object"),
        pytest.param({"status": "Success", "run_result": {"stdout": 1, "stderr": 2, "return_code": 0}}, id="numbers"),
    ],
)
def test_an_answer_of_the_wrong_shape_is_no_verdict_about_the_program(executor, service, answer):
    with service.answering(lambda _: answer):
        assert judged(executor, RIGHT, CALLS).status == "sandbox_error"


def test_a_service_that_speaks_no_http_is_no_verdict_about_the_program():
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def answer() -> None:
            with contextlib.suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with connection:
                        connection.recv(1 << 16)
                        connection.sendall(b"SSH-2.0-OpenSSH_9.2\r\n")

        threading.Thread(target=answer, daemon=True).start()
        with pytest.raises(SandboxError, match="cannot be used"):
            HttpExecutor(f"http://127.0.0.1:{listener.getsockname()[1]}")
        listener.shutdown(socket.SHUT_RDWR)


def test_an_address_that_is_none_is_said_at_the_start():
    with pytest.raises(SandboxError, match="cannot be used"):
        HttpExecutor("http://127.0.0.1:port")


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param({"status": "Failed", "run_result": {"status": "TimeLimitExceeded"}}, id="timeout"),
        pytest.param(finished("", "python: not found", 127), id="no-python"),
        pytest.param({"status": "Success", "run_result": None}, id="nothing"),
        pytest.param(finished("Python 3.11.7"), id="no-files"),
    ],
)
def test_a_service_that_cannot_run_python_is_said_at_the_start(service, answer):
    with service.answering(lambda _: answer), pytest.raises(SandboxError, match="the sandbox at"):
        HttpExecutor(service.url).close()


@pytest.mark.parametrize("kind", ["asserts", "unittest"])
def test_a_main_guard_does_not_run(executor, kind):
    code = RIGHT + "if __name__ == '__main__':\n    raise SystemExit('a demonstration')\n"
    assert judged(executor, code, KINDS[kind]).passed


@EVERY_KIND
def test_a_future_import_may_begin_a_program(executor, kind):
    assert judged(executor, "from __future__ import annotations\n" + RIGHT, KINDS[kind]).passed


@EVERY_KIND
def test_wrong_indentation_is_a_syntax_error(executor, kind):
    assert judged(executor, "def f(x):\nreturn x + 1\n", KINDS[kind]).status == "syntax_error"


@EVERY_KIND
def test_a_source_with_a_null_byte_is_a_syntax_error(executor, kind):
    assert judged(executor, "x = 'a\0b'\n" + RIGHT, KINDS[kind]).status == "syntax_error"


@EVERY_KIND
def test_a_source_with_a_lone_surrogate_has_a_verdict(executor, kind):
    assert judged(executor, "x = '\ud800'\n" + RIGHT, KINDS[kind]).status in ("pass", "syntax_error")


@EVERY_KIND
def test_a_program_may_write_past_sys_stdout(executor, kind):
    code = "import os\ndef f(x):\n    os.write(1, b'noise')\n    return x + 1\n"
    assert judged(executor, code, KINDS[kind]).passed


def test_results_larger_than_what_the_service_keeps_pass(executor):
    large = CallTests.of("f", [(600_000,), (400_000,)], ["x" * 600_000, "x" * 400_000])
    assert judged(executor, "def f(x):\n    return 'x' * x\n", large).passed


def test_memory_is_told_apart(executor):
    code = "def f(x):\n    raise MemoryError\n"
    assert [judged(executor, code, tests).status for tests in (CALLS, ASSERTS)] == ["memory"] * 2


def test_a_pass_counts_the_unit_tests(executor):
    assert judged(executor, RIGHT, UNITS).num_tests == 2


def test_call_names_the_kind_of_its_error(executor):
    run = executor.call("def f(x)", "f", values.encode([(2,)]), LIMITS)
    assert run.error.startswith("syntax_error: ")
