"""Boxed answers, and which response has a vote."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.answers.verdict import verify_answer
from actors.boxes import Boxes, find_boxes, only_answer
from actors.math_check import verify_math
from orchestrator.messages.verdicts import Status


@pytest.mark.parametrize(
    ("text", "count", "last"),
    [
        ("", 0, None),
        ("the answer is 5", 0, None),
        (r"so \boxed{5}.", 1, "5"),
        (r"\boxed {5} and \boxed{ 6 }", 2, "6"),
        (r"\boxed{}", 1, ""),
        (r"\boxed{\frac{1}{\sqrt{2}}}", 1, r"\frac{1}{\sqrt{2}}"),
        (r"\boxed{\left\{x : x>0\right.}", 1, r"\left\{x : x>0\right."),
        (r"\boxed{\begin{matrix}1\\{2}\end{matrix}}", 1, r"\begin{matrix}1\\{2}\end{matrix}"),
        (r"\boxed{\boxed{5}}", 2, "5"),
        (r"\boxed{4", 1, None),
        (r"\boxed{\frac{1}{2}", 1, None),
        (r"\boxed{5} or rather \boxed{", 2, "5"),
        (r"{ \boxed{5}", 1, "5"),
        (r"} \boxed{5}", 1, "5"),
        (r"\fbox{5} \boxed5 \boxedx{5} boxed{5}", 0, None),
        (r"\\boxed{5}", 1, "5"),
        (r"line\\\boxed{5}", 1, "5"),
    ],
)
def test_boxes(text, count, last):
    assert find_boxes(text) == Boxes(count, last)


PIECES = st.sampled_from(["\\", "{", "}", r"\boxed{", r"\boxed", r"\{", "boxed{", "5", " "])
BALANCED = st.recursive(
    st.sampled_from(["", "x", r"\{", r"\}", r"\\", r"\frac"]),
    lambda inner: st.lists(inner.map(lambda text: f"{{{text}}}") | inner, max_size=4).map(" ".join),
)


@given(st.text() | st.lists(PIECES).map("".join))
def test_extraction_never_raises_and_sees_every_opening(text):
    boxes = find_boxes(text)
    assert boxes.count == len(re.findall(r"\\boxed\s*\{", text))
    assert boxes.last is None or boxes.last in text


@given(BALANCED)
def test_any_balanced_text_is_extracted_from_its_box(inner):
    assert find_boxes(rf"text \boxed{{{inner}}} text") == Boxes(1, inner.strip())


def test_extraction_is_linear_in_the_text():
    start = time.monotonic()
    assert find_boxes(r"\boxed{" * 100_000) == Boxes(100_000, None)
    assert find_boxes(r"\boxed{" * 100_000 + "1" + "}" * 100_000) == Boxes(100_000, "1")
    assert time.monotonic() - start < 2


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        (r"so \boxed{12}", "12"),
        (r"\boxed{\frac{1}{2}} is it", r"\frac{1}{2}"),
        ("none", None),
        (r"\boxed{}", None),
        (r"\boxed{12", None),
        (r"\boxed{12} \boxed{12}", None),
        (r"\boxed{12} and \boxed{", None),
        (r"\boxed{} and \boxed{12}", None),
    ],
)
def test_a_response_has_a_vote_when_it_has_exactly_one_complete_box_that_is_not_empty(response, answer):
    assert only_answer(response) == answer
    for verify in (verify_answer, verify_math):
        verdict = verify(response, "12")
        assert (verdict.status in (Status.CORRECT, Status.WRONG)) == (answer is not None), (
            "as in an evaluation"
        )
