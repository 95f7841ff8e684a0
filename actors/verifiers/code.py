"""The verifier `code`: a Python program that passes the row's tests, in a process with limits.

In: a response with a program, a problem with tests. Out: a `Verdict`. A program that breaks a limit is wrong;
one that did not get its time is a `timeout`; a program that could not be run is an `error`.
"""

import contextlib
import json
import re
import secrets
import signal
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from actors.verifiers.sandbox import (
    NONCE_BYTES,
    ProgramRun,
    SandboxFailure,
    run_program_with_limits,
    wall_seconds,
    working_mode,
)
from actors.verifiers.stated import faulty_data, row_field
from orchestrator.config.verifiers import CodeSettings
from orchestrator.messages.problems import Problem
from orchestrator.messages.verdicts import Status, Verdict

_FENCE = re.compile(r"```[ \t]*(?P<language>[\w+-]*)[^\n]*\n(?P<code>.*?)(?:```|\Z)", re.DOTALL)
_PYTHON = ("", "python", "python3", "py")
_SHOWN = 300

# The proof is read only after the tests: a program that ends early, or prints what a test would, has none.
_HARNESS = """\
import os, sys
space = {"__name__": "solution"}
for name in ("setup.py", "solution.py", "test.py"):
    with open(name, encoding="utf-8", errors="surrogatepass") as file:
        exec(compile(file.read(), name, "exec"), space)
with os.fdopen(int(sys.argv[1]), "rb") as given, os.fdopen(int(sys.argv[2]), "wb") as proof:
    proof.write(given.read())
"""


@dataclass(frozen=True)
class ProgramTest:
    """One test: statements that must not raise, or what stdout must be for a stdin."""

    statements: str | None = None
    stdin: str = ""
    stdout: str = ""


class UnreadableTests(ValueError):
    """A row's tests are of no known form."""


def program_of(response: str) -> str | None:
    """The last Python block of a response, or the whole of a response without blocks; None without code."""
    blocks = [match for match in _FENCE.finditer(response) if match["language"].lower() in _PYTHON]
    code = blocks[-1]["code"] if blocks else "" if "```" in response else response
    return code if code.strip() else None


def read_tests(tests: Any) -> list[ProgramTest]:
    """The tests of a row.

    Forms: statements as a text or a list of texts; a list of `{input, output}`; `{inputs, outputs}`, with
    `fn_name` where they are arguments and a value; any of them as JSON text.

    Raises:
        UnreadableTests: The form is another, or there is no test.
    """
    if isinstance(tests, str) and tests.lstrip()[:1] in ("[", "{"):
        with contextlib.suppress(ValueError):  # statements may begin with a bracket too
            tests = json.loads(tests)
    found = list(_read_tests(tests))
    if not found:
        raise UnreadableTests("there is no test")
    return found


def _read_tests(tests: Any) -> Iterator[ProgramTest]:
    if isinstance(tests, str):
        if tests.strip():
            yield ProgramTest(statements=tests)
    elif isinstance(tests, Mapping) and {"inputs", "outputs"} <= tests.keys():
        if len(tests["inputs"]) != len(tests["outputs"]):
            raise UnreadableTests(f"{len(tests['inputs'])} inputs, but {len(tests['outputs'])} outputs")
        for given, expected in zip(tests["inputs"], tests["outputs"], strict=True):
            if tests.get("fn_name"):
                yield ProgramTest(statements=_call_test(str(tests["fn_name"]), given, expected))
            else:
                yield ProgramTest(stdin=_lines(given), stdout=_lines(expected))
    elif isinstance(tests, Sequence):
        for test in tests:
            if isinstance(test, Mapping) and {"input", "output"} <= test.keys():
                yield ProgramTest(stdin=_lines(test["input"]), stdout=_lines(test["output"]))
            elif isinstance(test, str):
                yield ProgramTest(statements=test)
            else:
                raise UnreadableTests(f"a test is {type(test).__name__}, not statements or input and output")
    else:
        raise UnreadableTests(f"the tests are {type(tests).__name__}, not a text, a list or an object")


def _lines(value: Any) -> str:
    return "\n".join(map(str, value)) if isinstance(value, list) else str(value)


def _call_test(name: str, arguments: Any, expected: Any) -> str:
    if not name.isidentifier():
        raise UnreadableTests(f"fn_name {name!r} is no name")
    function = f"(getattr(Solution(), {name!r}) if 'Solution' in globals() else {name})"
    return f"found = {function}(*{arguments!r})\nassert found == {expected!r}, repr(found)[:200]"


class CodeVerifier:
    """The verifier `code`.

    Raises:
        ConfigError: This machine cannot hold programs within limits.
    """

    def __init__(self, settings: CodeSettings) -> None:
        working_mode()
        self.settings = settings

    def __call__(self, response: str, problem: Problem) -> Verdict:
        name = self.settings.tests_field
        try:
            tests = read_tests(problem.reference if name is None else row_field(problem, name))
        except UnreadableTests as error:
            return faulty_data(problem, f"tests in {name or 'the reference'!r}: {error}")
        program = program_of(response)
        if program is None:
            return Verdict(Status.NO_ANSWER, None, "the response holds no Python block")
        setup = self.settings.setup_field and row_field(problem, self.settings.setup_field)
        setup = _lines(setup) if setup else ""
        passed, fault = 0, ""
        for number, test in enumerate(tests, 1):
            try:
                failure = self._failure(program, setup, test)
            except SandboxFailure as error:
                return Verdict(Status.ERROR, None, f"the program could not be run: {error}")
            except TimeoutError as error:
                return Verdict(Status.TIMEOUT, None, f"test {number}: {error}")
            passed += failure is None
            fault = fault or (f"test {number}: {failure}" if failure else "")
            if failure and not self.settings.graded:
                break
        share = passed / len(tests)
        reward = share if self.settings.graded else float(passed == len(tests))
        detail = f"{passed} of {len(tests)} tests passed" + (f"; {fault}" if fault else "")
        parts = {"tests": share} if self.settings.graded else {}
        return Verdict(Status.WRONG, None, detail, reward=reward, parts=parts)

    def _failure(self, program: str, setup: str, test: ProgramTest) -> str | None:
        """Why a program does not pass a test; None where it does."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        if test.statements is None:
            files = {"main.py": f"{setup}\n{program}" if setup else program}
            run = run_program_with_limits(self.settings, files, test.stdin)
        else:
            files = {"setup.py": setup, "solution.py": program, "test.py": test.statements}
            files["main.py"] = _HARNESS
            run = run_program_with_limits(self.settings, files, nonce=nonce)
        if (broken := self._broken_limit(run)) is not None:
            return broken
        if test.statements is not None:
            return None if run.proof == nonce else "it ended before its tests did"
        given, expected = _without_ends(run.stdout), _without_ends(test.stdout)
        return None if given == expected else f"stdout {_short(given)!r}, not {_short(expected)!r}"

    def _broken_limit(self, run: ProgramRun) -> str | None:
        """Why a run did not end well; None where it did."""
        limits = self.settings
        if run.end == "wall":
            raise TimeoutError(f"it did not end within {wall_seconds(limits):g} s")
        if run.end == "cpu":
            return f"more than {limits.cpu_s:g} s of CPU time"
        if run.end == "output":
            return f"more than {limits.output_kib} KiB of output"
        if run.end == "socket":
            return "it opened a socket"
        if run.end == "signal":
            return f"killed by {signal.Signals(run.code).name}"
        if run.code == 0:
            return None
        last = run.stderr.strip().rpartition("\n")[2]
        if "MemoryError" in last:
            return f"more than {limits.memory_mib} MiB of memory ({last})"
        if last.startswith("BlockingIOError") or "can't start new thread" in last:
            return f"more than {limits.processes} processes ({last})"
        return f"exit status {run.code}: {_short(last)}"


def _without_ends(text: str) -> str:
    """A text without spaces at the ends of its lines, and without empty lines at its end."""
    return "\n".join(line.rstrip() for line in text.splitlines()).rstrip()


def _short(text: str) -> str:
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."
