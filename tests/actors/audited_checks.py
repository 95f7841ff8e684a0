"""Checks hostile answers in this process and prints each event of Python that runs code or writes a file.

Run as a program by the tests: a hook for events cannot be removed from a process again.
"""

import json
import os
import signal
import sys
import tempfile

from actors.checking import RUN_CHECK, WARM_UP, WARM_UP_RESPONSE
from actors.child_main import load_function
from benchmarks.hostile import REFERENCES, SETTINGS
from benchmarks.hostile_answers import hostile_answers
from orchestrator.config.verifiers import verifier_text
from orchestrator.messages.problems import Problem

KINDS = ("code", "towers", "factorials", "macros", "sets of sets", "soup", "look-alikes", "json")
PATIENCE_S = 0.5
TEMPLATES = "sympy/polys/monomials.py"
"""sympy runs a text there too: one of its own, in which only the number of variables differs."""
RUNS_CODE = ("exec", "os.system", "os.exec", "os.fork", "os.posix_spawn", "subprocess.Popen", "ctypes.dlopen")
found: list[str] = []


class OutOfTime(BaseException):
    """A check takes long, which other tests are about."""


def note(event, arguments):
    if event in RUNS_CODE and not within("<frozen importlib", TEMPLATES):
        if event != "exec" or not os.path.exists(arguments[0].co_filename):  # a text, not a module
            found.append(f"{event} {arguments}"[:200])
    elif event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        found.append(f"{event} {arguments}"[:200])


def within(*files):
    """Whether one of these files is at work; an import runs modules and makes their data classes."""
    frame = sys._getframe()
    while frame is not None:
        if any(file in frame.f_code.co_filename for file in files):
            return True
        frame = frame.f_back
    return False


def late(number, frame):
    raise OutOfTime


def main():
    count, *names = sys.argv[1:]
    run_check = load_function(RUN_CHECK)
    answers = [answer for answer in hostile_answers(int(count), seed=5) if answer.kind in KINDS]
    texts = {name: verifier_text(SETTINGS.get(name, name)) for name in names}
    for text in texts.values():
        run_check(text, WARM_UP_RESPONSE, WARM_UP)
    tempfile.gettempdir()
    sys.addaudithook(note)
    signal.signal(signal.SIGALRM, late)
    ended = 0
    for name, text in texts.items():
        for answer in answers:
            signal.setitimer(signal.ITIMER_REAL, PATIENCE_S)
            try:
                run_check(text, answer.response, Problem.from_text("p", "", REFERENCES[name][0]))
                ended += 1
            except (OutOfTime, MemoryError):
                pass
            finally:
                signal.setitimer(signal.ITIMER_REAL, 0)
    seen = sorted(set(found))
    found.clear()
    eval("1 + 1")
    works = bool(found)
    print(json.dumps({"checks": len(texts) * len(answers), "ended": ended, "found": seen, "works": works}))


if __name__ == "__main__":
    main()
