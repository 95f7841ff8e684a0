"""Properties of the comparison: rewriting an answer keeps the verdict, and changing it flips the verdict."""

from fractions import Fraction

from hypothesis import given, settings
from hypothesis import strategies as st

from actors.answers.compare import accepts, same, unread_part

INTEGERS = st.integers(-(10**9), 10**9)
DENOMINATORS = st.integers(2, 10**6)
UNITS = st.sampled_from(["cm", "km", "kg", "hours", "dollars", "inches"])


def expressions():
    """Expressions of a few letters, numbers, roots and fractions, as LaTeX."""
    atoms = st.sampled_from(["x", "y", r"\pi", "2", "3", "7", r"\sqrt{2}", r"\frac{1}{3}", "n"])
    return st.recursive(
        atoms,
        lambda inner: st.one_of(
            st.tuples(inner, inner).map(lambda pair: rf"\left({pair[0]}+{pair[1]}\right)"),
            st.tuples(inner, inner).map(lambda pair: rf"{pair[0]} \cdot {pair[1]}"),
            st.tuples(inner, inner).map(lambda pair: rf"\frac{{{pair[0]}}}{{{pair[1]}}}"),
            inner.map(lambda one: rf"{{{one}}}^{{2}}" if one.isalnum() else rf"\left({one}\right)^{{2}}"),
        ),
        max_leaves=6,
    )


def notations(value):
    """Ways to write a fraction."""
    above, below = value.numerator, value.denominator
    sign, size = ("-", -above) if above < 0 else ("", above)
    yield rf"\frac{{{above}}}{{{below}}}"
    yield rf"{sign}\dfrac{{{size}}}{{{below}}}"
    yield f"{above}/{below}"
    yield rf"\frac{{{-above}}}{{{-below}}}"
    yield rf"$\displaystyle {sign} \left(\frac{{{size}}}{{{below}}}\right)$."
    yield rf"x = {sign}\tfrac{{{size}}}{{{below}}}"
    if size > below > 1:
        yield rf"{sign}{size // below}\frac{{{size % below}}}{{{below}}}"
        yield f"{sign}{size // below} {size % below}/{below}"


@given(INTEGERS, DENOMINATORS)
def test_every_notation_of_a_fraction_is_one_value(above, below):
    value = Fraction(above, below)
    if value.denominator == 1:
        return
    first, *others = notations(value)
    for other in others:
        assert accepts(first, other).equal, other
        assert same(other, first), other
        assert not accepts(rf"\frac{{{value.numerator + 1}}}{{{value.denominator}}}", other).equal, other


@given(INTEGERS)
def test_every_notation_of_an_integer_is_one_value(number):
    for other in (
        f"{number:,}",
        f"{number}.0",
        f"+{number}" if number >= 0 else f"−{-number}",
        rf"\text{{{number}}}",
    ):
        assert accepts(str(number), other).equal, other
        assert not accepts(str(number + 1), other).equal, other
    if number:
        assert not accepts(str(number), str(-number)).equal


@settings(deadline=None, max_examples=60)
@given(expressions())
def test_an_expression_equals_its_rewritings_and_no_changed_one(text):
    assert unread_part(text) is None
    plain = text.replace(r"\left", "").replace(r"\right", "").replace(r" \cdot ", "*")
    for other in (plain, rf"\left({text}\right)", f"${text}$", rf"0+{text}", rf"\displaystyle {text}"):
        assert accepts(text, other).equal, other
        assert same(other, text), other
    for other in (rf"1+{text}", rf"2 \cdot \left({text}\right)", f"{text}+10^{{-30}}"):
        assert not same(text, other), other


@given(st.integers(1, 10**6), UNITS, UNITS)
def test_a_value_has_one_unit(number, unit, other):
    assert accepts(f"{number} {unit}", rf"{number}~\mathrm{{{unit}}}").equal
    assert accepts(f"{number} {unit}", rf"{number} \text{{ {other}}}").equal == (unit == other)


@given(st.integers(2, 16), st.integers(2, 16), st.integers(1, 10**6))
def test_a_number_belongs_to_its_base(base, other, value):
    digits, rest = "", value
    while rest:
        digits, rest = "0123456789ABCDEF"[rest % base] + digits, rest // base
    if not digits[0].isdigit():
        return
    assert accepts(f"{digits}_{{{base}}}", f"({digits})_{{{base}}}").equal
    assert accepts(f"{digits}_{{{base}}}", str(value)).equal
    if base != other and value >= min(base, other):
        assert not accepts(f"{digits}_{{{base}}}", f"{digits}_{{{other}}}").equal


@given(st.lists(st.integers(-99, 99), min_size=2, max_size=6, unique=True), st.randoms())
def test_a_set_has_no_order_and_a_tuple_has_one(numbers, random):
    shuffled = list(numbers)
    random.shuffle(shuffled)
    inner, other = (", ".join(map(str, some)) for some in (numbers, shuffled))
    assert same(rf"\{{{inner}\}}", rf"\{{{other}\}}")
    assert same(rf"({inner})", rf"({other})") == (numbers == shuffled)
    assert not accepts(rf"\{{{inner}\}}", rf"\{{{inner}, 100\}}").equal


@given(st.integers(-99, 99), st.integers(1, 99), st.booleans(), st.booleans())
def test_the_ends_of_an_interval_count(low, length, low_in, high_in):
    high = low + length
    opening, closing = "[" if low_in else "(", "]" if high_in else ")"
    interval = f"{opening}{low}, {high}{closing}"
    below = {True: r"\le", False: "<"}
    chain = f"{low} {below[low_in]} x {below[high_in]} {high}"
    assert same(interval, chain)
    other = f"{'(' if low_in else '['}{low}, {high}{closing}"
    assert not accepts(interval, other).equal


@given(st.text(alphabet=r"0123456789+-*/^_(){}[]\,.;:|<>=!%'$ abefginoprtx", max_size=30))
def test_no_text_breaks_the_reading(text):
    accepts(text, "5")
    accepts("5", text)
    assert same(text, text)
