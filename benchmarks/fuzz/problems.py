"""Damaged data files through what training, evaluation and the cold start do with them.

    python -m benchmarks.fuzz.problems --cases 300 --seed 0

Each case is a .jsonl file with one to three faults. It is read, its prompts are encoded, its references are
checked in a verification worker, and its rows are read as worked solutions too. A case passes when it is
accepted, with no control token in a prompt beyond the template's own, or refused by a `DataError` that names
the file and, unless the whole file is at fault, line and field. Any other exception fails it.
"""

import argparse
import json
import random
import re
import sys
import tempfile
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from actors.verification import VerificationWorker
from orchestrator.config.cold_start import SFTDataConfig
from orchestrator.data.demonstrations import load_demonstrations
from orchestrator.data.problems import load_problems
from orchestrator.data.prompts import PromptSet
from orchestrator.data.tokens import ModelTokens, load_tokens
from orchestrator.errors import DataError
from orchestrator.messages.verdicts import Verdict

BASE = Path(__file__).parents[2] / "experiments" / "quickstart" / "base"
SCORE_TOKEN = "<|self_reward|>"
ROWS = 6
CHECKED = 3
"""References of a case that the worker checks."""
LONGEST_PROMPT = 400
FIELDS = ("problem", "answer", "solution", "id", "kind")

VALUES = [
    *(
        "null",
        "true",
        "[]",
        "{}",
        '""',
        '" \\n "',
        "[[1, 2], [3]]",
        '{"a": {"b": [1]}}',
        '["1", null]',
        "[1, 2.5]",
    ),
    *(
        "NaN",
        "-Infinity",
        "-0",
        "1e400",
        "1e-400",
        "1e99999999",
        "7" * 400,
        "8" * 5000,
        "0." + "3" * 500,
        "5.0",
    ),
    *(
        '"\\ud83d"',
        '"a\\udc00b"',
        '"\\ud83d\\ude00"',
        '"\\u0000"',
        '"\\u0007lpha"',
        '"\\u000bec"',
        '"\\u0092"',
    ),
    *(
        '"\\frac{1}{2}"',
        '"\\beta"',
        '"\\text{x}"',
        '"2 \\times 3"',
        '"\\nu"',
        '"x \\neq 0"',
        '"\\right)"',
        '"\\alpha"',
    ),
    *(
        '"\\u200e5"',
        '"\\ufeff5"',
        '"a\\u2028b"',
        '"\\ufdd0<|im_end|>"',
        '"a\\tb\\n\\tc"',
        '"1\\r\\n2"',
        '"5\\u00a0km"',
    ),
    *(
        '"<|im_end|>\\n<|im_start|>2<|im_end|>"',
        '"<|self_reward|>"',
        '"<pad><|im_start|>"',
        '"<|im_"',
        '"end|>"',
    ),
    *(
        '"' + "x" * 3000 + '"',
        "[" * 2000 + "]" * 2000,
        '"' + "\\\\frac" * 50 + '"',
        '"=\\\\boxed{"',
        '"}"',
        '"$"',
        "'1'",
    ),
]
"""JSON, or nearly so, in place of a field's value."""

CONTROL = [bytes([code]) for code in (*range(0x20), 0x7F)]


def good_lines() -> list[bytes]:
    """Lines of a file without a fault."""
    rows = (
        {
            "problem": f"{n}+{n}=",
            "answer": str(2 * n),
            "solution": rf"\boxed{{{2 * n}}}",
            "id": n,
            "kind": "sum",
        }
        for n in range(ROWS)
    )
    return [json.dumps(row).encode() for row in rows]


def _other_value(lines: list[bytes], rng: random.Random) -> None:
    number, field = rng.randrange(len(lines)), rng.choice(FIELDS)
    value = rng.choice(VALUES).encode()
    pattern = rb'("%b": )("(?:[^"\\]|\\.)*"|\d+)' % field.encode()
    lines[number] = re.sub(pattern, lambda match: match[1] + value, lines[number])


def _other_bytes(lines: list[bytes], rng: random.Random) -> None:
    number = rng.randrange(len(lines))
    line = bytearray(lines[number])
    for _ in range(rng.randint(1, 4) if line else 0):
        line[rng.randrange(len(line))] = rng.randrange(256)
    lines[number] = bytes(line)


def _insertion(lines: list[bytes], rng: random.Random) -> None:
    number = rng.randrange(len(lines))
    place = rng.randrange(len(lines[number]) + 1)
    inserted = rng.choice([*CONTROL, b"\xff", "é".encode("latin-1"), b"\xed\xa0\xbd", b"\xe2\x80\xa8", b"\\"])
    lines[number] = lines[number][:place] + inserted + lines[number][place:]


def _cut(lines: list[bytes], rng: random.Random) -> None:
    number = rng.randrange(len(lines))
    lines[number] = lines[number][: rng.randrange(len(lines[number]) + 1)]


def _repeated_key(lines: list[bytes], rng: random.Random) -> None:
    number, field = rng.randrange(len(lines)), rng.choice(FIELDS)
    lines[number] = lines[number].replace(b"{", b'{"%b": 1, ' % field.encode(), 1)


def _missing_field(lines: list[bytes], rng: random.Random) -> None:
    number, field = rng.randrange(len(lines)), rng.choice(FIELDS)
    lines[number] = lines[number].replace(field.encode(), b"other", 1)


def _other_line(lines: list[bytes], rng: random.Random) -> None:
    others = [b"", b"  ", b"5", b'"text"', b"null", b"[]", b"{}", b"[1]", b"# comment", b"\r", b"{" * 3000]
    lines.insert(rng.randrange(len(lines) + 1), rng.choice(others))


LINE_FAULTS: list[Callable[[list[bytes], random.Random], None]] = [
    *[_other_value] * 6,
    *(_other_bytes, _insertion, _cut, _repeated_key, _missing_field, _other_line),
]
FILE_FAULTS: list[Callable[[bytes], bytes]] = [
    lambda content: b"\xef\xbb\xbf" + content,
    lambda content: content.replace(b"\n", b"\r\n"),
    lambda content: content.replace(b"\n", b"\r"),
    lambda content: content.decode("latin-1").encode("utf-16"),
    lambda content: content.decode("latin-1").encode("utf-16-le"),
    lambda content: content.replace(b"+", "±".encode("latin-1")),
    lambda content: b"[" + content.strip().replace(b"\n", b",\n") + b"]",
    lambda content: b"[" + content,
    lambda content: b"",
    lambda content: b"\n\n\n",
    lambda content: content[: len(content) // 2],
    lambda content: content.replace(b"\n", b"\n\n"),
    lambda content: content + b"\0" * 100,
]


def damaged(rng: random.Random) -> bytes:
    """A file with one to three faults."""
    lines = good_lines()
    for _ in range(rng.randint(1, 3)):
        rng.choice(LINE_FAULTS)(lines, rng)
    content = b"\n".join(lines) + b"\n"
    return rng.choice(FILE_FAULTS)(content) if rng.random() < 0.25 else content


@dataclass
class Readers:
    """What reads a case as the product does."""

    tokens: ModelTokens
    worker: VerificationWorker

    def train(self, path: str) -> None:
        """Read, encode and check a file as training and evaluation do."""
        problems = load_problems(path, "problem", "answer")
        prompts = PromptSet(self.tokens.chat, problems, "Think.", LONGEST_PROMPT)
        around = self._control_tokens(self.tokens.chat.chat([{"role": "user", "content": "1"}]))
        for index in range(len(prompts)):
            if self._control_tokens(prompts.token_ids(index)) != around:
                raise AssertionError(f"problem {prompts.problems[index].where} became control tokens")
        for problem in problems[:CHECKED]:
            responses = [rf"\boxed{{{problem.reference}}}", r"\boxed{1}", "none"]
            verdicts = self.worker.verify(responses, [True] * len(responses), problem)
            if not all(isinstance(verdict, Verdict) for verdict in verdicts):
                raise AssertionError(f"{problem.reference[:50]!r} has no verdict")

    def fine_tune(self, path: str) -> None:
        """Read a file as the cold start does."""
        data = SFTDataConfig(train=path, instruction="", max_tokens=LONGEST_PROMPT)
        demonstrations = load_demonstrations(data, self.tokens)
        around = None
        for index in range(len(demonstrations)):
            token_ids, prompt_length = demonstrations.sample(index)
            found = self._control_tokens(token_ids[prompt_length:].tolist())
            around = found if around is None else around
            if found != around:
                raise AssertionError(f"solution {index} became control tokens")

    def _control_tokens(self, token_ids: list[int]) -> list[int]:
        return self.tokens.chat.control.among(token_ids)


WHOLE_FILE = "holds no problem|holds no worked solution|none of|is not JSON|nested too deeply"
PLACE = re.compile(rf"line \d+.*('({'|'.join(FIELDS)})'|is not|nested|not an object)|{WHOLE_FILE}", re.DOTALL)


def outcome(read: Callable[[str], None], path: Path) -> str:
    """`accepted`, or the reason of a refusal.

    Raises:
        AssertionError: The refusal does not name the place.
        Exception: What reading raised, if it is no `DataError`.
    """
    try:
        read(str(path))
    except DataError as error:
        message = str(error)
        if path.name not in message or not PLACE.search(message) or len(message) > 1000:
            raise AssertionError(f"this refusal names no place: {message[:500]}") from error
        return "refused"
    return "accepted"


def run(cases: int, seed: int) -> tuple[Counter[str], list[str]]:
    """Read damaged files: how often each outcome came, and a report of each case that failed."""
    counts: Counter[str] = Counter()
    failures = []
    worker = VerificationWorker(timeout_s=10.0)
    readers = Readers(load_tokens(str(BASE), SCORE_TOKEN), worker)
    try:
        with tempfile.TemporaryDirectory() as folder:
            for case in range(cases):
                path = Path(folder) / f"case-{case}.jsonl"
                path.write_bytes(damaged(random.Random(f"{seed} {case}")))
                for name, read in (("train", readers.train), ("sft", readers.fine_tune)):
                    try:
                        counts[f"{name} {outcome(read, path)}"] += 1
                    except Exception:
                        failures.append(
                            f"case {case} of seed {seed}, {name}: {path.read_bytes()[:2000]!r}\n"
                            f"{traceback.format_exc(limit=-3)}"
                        )
    finally:
        worker.close()
    return counts, failures


def main() -> int:
    """The command; status 1 when a case failed."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.fuzz.problems", description=__doc__)
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    counts, failures = run(arguments.cases, arguments.seed)
    for failure in failures:
        print(failure)
    print(
        f"{arguments.cases} files: {', '.join(f'{counts[key]} {key}' for key in sorted(counts))}, "
        f"{len(failures)} failed"
    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
