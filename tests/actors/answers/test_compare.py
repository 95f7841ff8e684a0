"""What a verdict may leave out and a vote may not, and what is never taken for an answer."""

import pytest

from actors.answers.compare import accepts, same, unread_part


@pytest.mark.parametrize(
    ("reference", "answer"),
    [
        ("5", "x=5"),
        ("x=5", "5"),
        ("20", r"20\text{ apples}"),
        (r"864 \mbox{ inches}^2", "864"),
        (r"12\text{ km}", "12000 m"),
        ("62.5%", "0.625"),
        ("62.5%", "62.5"),
        ("40", r"40\%"),
        (r"145^\circ", "145"),
        (r"145^\circ", r"\frac{29\pi}{36}"),
        ("52_8", "52"),
        ("52_8", "42"),
        ("4.75", "4,75"),
        ("3:8", "3/8"),
        ("3:8", "6:16"),
        ("3:45", "3:45 PM"),
        (r"\text{(C)}", "c"),
        ("True", "yes"),
        (r"\text{no solution}", r"\emptyset"),
        ("y = 2x + 3", "2x+3"),
        ("f(x)=2x", "2x"),
        ("6+9i", "6+9j"),
        (r"\log_{10} 5", r"\log 5"),
        (r"x \equiv 3 \pmod 5", "x = 5k+3"),
    ],
)
def test_a_verdict_takes_an_answer_that_says_more_or_less_than_the_reference(reference, answer):
    assert accepts(reference, answer).equal, str(accepts(reference, answer))


def test_a_number_without_a_base_is_in_base_ten():
    assert accepts("52_8", "52").equal, "the answer leaves out what the reference says"
    assert not accepts("52", "52_8").equal


@pytest.mark.parametrize(
    ("reference", "answer", "equal"),
    [
        ("0.33", r"\frac13", True),
        ("0.3333", r"\frac13", True),
        ("3.14", r"\pi", True),
        ("3.14", "3.14159", True),
        ("3.14", "3.141", False),  # another decimal, not a more precise one
        ("1.25", "1.254", False),
        ("0.3", r"\frac13", False),  # one digit is no precision
        ("0.5", "0.49", False),
        ("3", "2.999", False),
        (r"\frac13", "0.33", False),  # only the reference states a precision
        (r"\pi", "3.14", False),
    ],
)
def test_a_decimal_reference_states_its_own_precision(reference, answer, equal):
    assert accepts(reference, answer).equal == equal
    assert not same(reference, answer)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ("5", "x=5"),
        ("50\\%", "0.5"),
        (r"145^\circ", r"\frac{29\pi}{36}"),
        ("52_8", "42"),
        ("x=1 or x=2", r"\{2, 1\}"),
        ("(2,5)", "2<x<5"),
        (r"\pm 2", "-2, 2"),
        ("60 minutes", "1 hour"),
        (r"\begin{pmatrix}1\\2\\3\end{pmatrix}", "(1,2,3)"),
        ("2x+y=3", "4x+2y=6"),
        ("f(x)=x^2", "f(t)=t^2"),
    ],
)
def test_answers_that_are_one_vote(first, second):
    assert same(first, second)
    assert same(second, first)


@pytest.mark.parametrize(
    ("first", "second"),
    [("5 cm", "5"), ("5 cm", "5 km"), ("62.5%", "62.5"), ("52_8", "52"), ("2x+3", "y=2x+3"), ("3:8", "6:16")],
)
def test_answers_that_are_two_votes(first, second):
    assert not same(first, second)
    assert not same(second, first)


@pytest.mark.parametrize(
    "answer",
    [
        r"x \equiv 5 \pmod{7} 3",
        r"\frac{7}{",
        "7 8",
        r"7 \mho",
        "7 )",
        r"\foo{7}",
        "7 or not",
        "at least 7",
        "about 7 or so",
        "7 (or 8)",
        r"\int_0^7 x",
        r"7 \ldots 9",
        "x7",
        "@7",
        "7 = 8",
        r"7 \approx 9.5",
        "2^3^4",
        "3, , 7",
        r"\begin{pmatrix} 7 & 8 \\ 9 \end{pmatrix}",
        r"7_{4}",
    ],
)
def test_no_part_of_an_unread_text_is_taken_for_the_whole(answer):
    assert unread_part(answer) is not None
    for number in ("3", "4", "7", "8", "9", "49", "56"):
        assert not accepts(number, answer).equal
        assert not same(number, answer)
    assert accepts(answer, answer).equal, "the same text is right"


def test_what_is_not_read_is_named():
    assert "mho" in unread_part(r"7 \mho")
    assert "bracket" in unread_part(r"\frac{7}{")
    assert unread_part(r"\frac{7}{2}") is None
