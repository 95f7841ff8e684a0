"""Answers made to break a checker: they end soon, without a large number and without running as Python."""

import time

import pytest

from actors.answers.verdict import verify_answer
from orchestrator.messages.verdicts import Status

HOSTILE = [
    "9^{9^{9^9}}",
    "9^{9^{9^{9^9}}}",
    "10^{10^{10}}!",
    "(10^{6})!!!",
    "9" * 100_000,
    "1" * 3_999,
    "0." + "3" * 3_900,
    "1e999999999",
    r"10^{-999999999999}",
    "(" * 3_000 + "1" + ")" * 3_000,
    "{" * 900 + "1" + "}" * 900,
    "-" * 3_000 + "1",
    "+" * 3_000 + "1",
    r"\frac{1}{" * 300 + "1" + "}" * 300,
    r"\sqrt{" * 300 + "2" + "}" * 300,
    "x^" * 1_000 + "x",
    "x+" * 1_900 + "x",
    "(x+1)^{1000000}",
    "(x+y+z)^{99}(x-y)^{99}",
    r"\binom{10^9}{10^8}",
    r"\sum_{k=1}^{10^9} k",
    r"\sin(10^{10^{5}})",
    r"\sin 10^{10^{9}}",
    r"\sqrt[10^{10^{9}}]{2}",
    r"\pi \sum_{k=1}^{10^{10^{9}}} k",
    r"\pi!",
    r"\sum_{k=1}^{100}" * 4 + "k",
    r"\pi \sum_{k=1}^{2000} k^{k}",
    "1,0001e9",
    r"\pm" * 60 + "1",
    r"\{" + ",".join(map(str, range(700))) + r"\}",
    ",".join(["x"] * 700),
    "__import__('os').system('touch /tmp/laser-was-here')",
    "exec(open('/etc/passwd').read())",
    "().__class__.__bases__[0].__subclasses__()",
    "lambda: 0",
    r"\text{" * 500 + "a" + "}" * 500,
    "\\" * 2_000,
    r"\begin{pmatrix}" + r"1 & 2 \\" * 200 + r"\end{pmatrix}",
    "1,234," * 600,
    "1 " * 1_500,
    "2^{2^{2^{2^{2^{2}}}}}",
    r"\lfloor 10^{40} \pi \rfloor",
    "1" + "0" * 30 + "." + "0" * 3_000 + "1",
    "\ud800",
    "\x00",
]


@pytest.mark.parametrize("answer", HOSTILE, ids=lambda answer: ascii(answer[:30]))
@pytest.mark.parametrize("reference", ["42", r"\sqrt{2}+x"])
def test_a_hostile_answer_is_wrong_and_ends(answer, reference):
    started = time.monotonic()
    verdict = verify_answer(rf"\boxed{{{answer}}}", reference)
    assert verdict.status in (Status.WRONG, Status.NO_ANSWER, Status.FORMAT), verdict.detail
    assert time.monotonic() - started < 5
    assert len(verdict.detail) < 1_000


@pytest.mark.parametrize("text", HOSTILE, ids=lambda text: ascii(text[:30]))
def test_a_hostile_text_against_itself_and_a_near_miss_ends(text):
    started = time.monotonic()
    verify_answer(rf"\boxed{{{text}}}", text)
    verify_answer(rf"\boxed{{{text}+1}}", text)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        (r"\frac{1}{2004!}", r"\frac{1}{2006!}"),
        (r"1-2^{-80}", "1"),
        (r"\pi", r"\pi+10^{-300}"),
        (r"\pi", r"\pi+e^{-5000}"),
        ("e^{-49}", "e^{-50}"),
        (r"\sqrt{2}", r"\frac{1414213562373095048801688724209698078569671875376948}{10^{51}}"),
        ("10^{100}", "10^{100}+1"),
        ("0", r"1.6\times10^{-400}"),
        ("0", "e^{-1000}"),
    ],
)
def test_a_small_difference_is_a_difference(reference, answer):
    assert verify_answer(rf"\boxed{{{answer}}}", reference).status is Status.WRONG
