r"""Tries a verifier on references: each must equal itself and its rewritings, and none of its near misses.

A rewriting changes the notation alone: fractions, spaces, `\left`, fonts, delimiters. A near miss changes one
digit, one sign or one letter; up to 20 are made of each reference. Prints what fails, with the rule.

    python benchmarks/verifier_references.py REFERENCES.jsonl [--field answer] [--verifier math]
"""

import argparse
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from actors.verifiers.loading import loaded_verifier
from orchestrator.config.verifiers import verifier_text
from orchestrator.messages.problems import Problem
from orchestrator.messages.verdicts import Status, Verdict

NEAR_MISSES = 20
_COMMAND = re.compile(r"\\[A-Za-z]+|\\.")


def rewritings(reference: str) -> Iterator[tuple[str, str]]:
    """Other notations of a reference, each with what was changed."""
    yield "itself", reference
    for name in ("dfrac", "tfrac"):
        if r"\frac" in reference:
            yield name, reference.replace(r"\frac", rf"\{name}")
    plain = re.sub(r"\\d?frac\s*\{(-?\w+)\}\s*\{(\w+)\}", r"(\1)/(\2)", reference)
    if plain != reference and not re.search(r"\d\s*\\d?frac|\\d?frac\{[^}]*\}\{[^}]*\}\^", reference):
        yield "plain fraction", plain
    if re.search(r"\\frac\{\d\}\{\d\}", reference):
        yield "fraction without braces", re.sub(r"\\frac\{(\d)\}\{(\d)\}", r"\\frac\1\2", reference)
    yield (
        "no spaces",
        re.sub(r"(?<![A-Za-z]) +| +(?![A-Za-z])", "", reference) if _tight(reference) else reference,
    )
    if r"\text" not in reference and r"\mbox" not in reference and "where" not in reference:
        yield "more spaces", re.sub(r"(?<=[\d)}])\s*([-+=])\s*(?=[\d({\\a-z])", r" \1 ", reference)
    if "(" in reference and r"\left" not in reference and reference.count("(") == reference.count(")"):
        yield "left and right", reference.replace("(", r"\left(").replace(")", r"\right)")
    if r"\left" in reference:
        yield "no left and right", reference.replace(r"\left", "").replace(r"\right", "")
    yield "display style", rf"\displaystyle {reference}"
    yield "dollars", f"${reference}$" if "$" not in reference else reference
    yield "stop", reference if reference.endswith(".") else f"{reference}."
    if match := re.fullmatch(r"(-?[\d.]+|[A-Za-z]+)", reference):
        yield "text", rf"\text{{{match[1]}}}"
    if r"\text{" in reference:
        yield "upright", reference.replace(r"\text{", r"\mathrm{").replace(" ", r"\ ")
        yield "bold", reference.replace(r"\text{", r"\textbf{")
    if re.fullmatch(r"\d{5,}", reference):
        yield "digit groups", f"{int(reference):,}"


def _tight(reference: str) -> bool:
    return not re.search(r"\\text|\\mbox|\d \d|where|\d\s+\\frac|\\ |\\frac \d", reference)


def near_misses(reference: str) -> list[tuple[str, str]]:
    """Up to `NEAR_MISSES` texts that differ in one digit, sign or letter, spread over the reference."""
    edits: list[tuple[str, str]] = []
    commands = [match.span() for match in _COMMAND.finditer(reference)]
    environments = [match.span() for match in re.finditer(r"\\(?:begin|end)\s*\{\w+\}", reference)]
    for place, sign in enumerate(reference):
        if any(start <= place < end for start, end in commands + environments):
            continue
        others = _others(reference, place, sign)
        edits += [(what, reference[:place] + other + reference[place + 1 :]) for what, other in others]
    if not re.match(r"\s*[-\\{(\[$A-Za-z]|\s*0(?![\d.])", reference):
        edits.append(("sign", f"-{reference}"))
    edits = [edit for edit in dict.fromkeys(edits) if edit[1] != reference]
    step = max(1, len(edits) / NEAR_MISSES)
    return [edits[int(number * step)] for number in range(min(len(edits), NEAR_MISSES))]


def _others(reference: str, place: int, sign: str) -> list[tuple[str, str]]:
    if sign.isdecimal() and sign.isascii():
        return [("digit", str((int(sign) + step) % 10)) for step in (1, 5)]
    if sign in "+-" and not re.match(r"\s*0(?![\d.])", reference[place + 1 :]):
        return [("sign", "-" if sign == "+" else "+")]
    bound = [match.span(1) for match in re.finditer(r"[A-Za-z]\(([a-z])\)\s*=", reference)]
    if sign.isalpha() and sign.isascii() and not any(start <= place < end for start, end in bound):
        return [("letter", other) for other in _other_letters(reference, sign)]
    return []


def _other_letters(reference: str, sign: str) -> list[str]:
    letters = "abdghknpqrstuvwxyz" if sign.islower() else "ABDFGHKLMPQRSTUVWXYZ"
    new = [letter for letter in letters if letter not in reference]
    return new[:1]


def try_references(
    references: list[str], check: Callable[[str, str], Verdict]
) -> tuple[Counter[str], list[str]]:
    """Counts of checks and failures, and a line for each failure."""
    counts: Counter[str] = Counter()
    failures = []
    for reference in references:
        for what, text in rewritings(reference):
            verdict = check(rf"\boxed{{{text}}}", Problem.from_text("", "", reference))
            counts["rewritings"] += 1
            if verdict.status is not Status.CORRECT:
                counts["rewritings refused"] += 1
                failures.append(
                    f"refused   {reference}  <-  {text}  ({what}): {verdict.status}: {verdict.detail}"
                )
        for what, text in near_misses(reference):
            verdict = check(rf"\boxed{{{text}}}", Problem.from_text("", "", reference))
            counts["near misses"] += 1
            if verdict.status is Status.CORRECT:
                counts["near misses accepted"] += 1
                failures.append(f"accepted  {reference}  <-  {text}  ({what}): {verdict.detail}")
    return counts, failures


def main() -> int:
    """Print what fails, and the counts; 1 where anything fails."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="references, one JSON object a line")
    parser.add_argument("--field", default="answer", help="its field with the reference (answer)")
    parser.add_argument("--verifier", default="math", help="name or import path of the verifier (math)")
    options = parser.parse_args()
    lines = options.file.read_text(encoding="utf-8").splitlines()
    references = list(dict.fromkeys(str(json.loads(line)[options.field]) for line in lines if line.strip()))
    check = loaded_verifier(verifier_text(options.verifier)).check
    check(r"\boxed{\frac{\sqrt{4}}{4}}", Problem.from_text("", "", r"\frac12"))
    started = time.perf_counter()
    counts, failures = try_references(references, check)
    seconds = time.perf_counter() - started
    print("\n".join(failures))
    checks = counts["rewritings"] + counts["near misses"]
    print(
        f"{len(lines)} references, {len(references)} different: "
        f"{counts['rewritings refused']} of {counts['rewritings']} rewritings refused, "
        f"{counts['near misses accepted']} of {counts['near misses']} near misses accepted; "
        f"{checks / seconds:,.0f} checks/s"
    )
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
