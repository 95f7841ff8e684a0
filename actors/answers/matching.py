"""The rules by which two readings are equal, form by form, and across the forms that mean the same."""

from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

from actors.answers.amounts import match_quantities
from actors.answers.forms import (
    Based,
    Cases,
    ChoiceLetter,
    Congruence,
    Function,
    Matrix,
    Quantity,
    Ratio,
    Reading,
    Region,
    Relation,
    Several,
    TimeOfDay,
    Words,
)
from actors.answers.nodes import Node, exact, num, sym, symbols
from actors.answers.nodes import replace as replace_symbols
from actors.answers.regions import INFINITY, MINUS_INFINITY, as_region
from actors.answers.values import equal_values, real_value, sample_point

Match = tuple[bool, str]
"""Whether two readings are equal, and by which rule."""

_FORMS = {
    Quantity: "a value", Several: "several values", Region: "a set of numbers", Relation: "a relation",
    Function: "a function", Congruence: "a congruence", Based: "a number in a base", Ratio: "a ratio",
    TimeOfDay: "a time", Matrix: "a matrix", Cases: "cases", ChoiceLetter: "a choice", Words: "words",
}  # fmt: skip
_YES = {"true": "yes", "yes": "yes", "false": "no", "no": "no"}


def match(reference: Reading, answer: Reading, lenient: bool) -> Match:
    """Whether two readings are equal; `lenient` for a verdict, else exactly."""
    rule = _RULES.get((type(reference), type(answer)))
    if rule is not None:
        return rule(reference, answer, lenient)
    turned = _RULES.get((type(answer), type(reference)))
    if turned is not None:
        return turned(answer, reference, lenient)
    return False, f"{_FORMS[type(reference)]} is not {_FORMS[type(answer)]}"


def _said(equal: bool, rule: str, otherwise: str) -> Match:
    return (True, rule) if equal else (False, otherwise)


def _same_name(first: str | None, second: str | None, lenient: bool) -> bool:
    """In a verdict two names of the unknown must agree; in a vote on one problem they do not matter."""
    return not lenient or first is None or second is None or first == second


# Several values.


def _several(first: Several, second: Several, lenient: bool) -> Match:
    kinds = {first.kind, second.kind}
    ordered = kinds <= {"tuple", "sequence"} and len(kinds) == 1
    if not ordered and kinds & {"tuple", "sequence"}:
        is_plain = kinds == {"tuple", "list"} and len(first.items) == len(second.items)
        long = len(first.items) > 2 or any(getattr(item, "name", None) for item in first.items + second.items)
        if not (lenient and is_plain and long):
            return False, f"a {first.kind} is not a {second.kind}"
        ordered = True
    if ordered:
        if len(first.items) != len(second.items):
            return False, f"{len(first.items)} entries are not {len(second.items)}"
        for place, (one, other) in enumerate(zip(first.items, second.items, strict=True), 1):
            if not (outcome := match(one, other, lenient))[0]:
                return False, f"entry {place}: {outcome[1]}"
        return True, "equal entries in the same order"
    return _unordered(first, second, lenient)


def _unordered(first: Several, second: Several, lenient: bool) -> Match:
    items, others = list(first.items), list(second.items)
    if "set" in (first.kind, second.kind):
        items, others = _distinct(items), _distinct(others)
    if len(items) != len(others):
        return False, f"{len(items)} values are not {len(others)}"
    for item in items:
        found = next((place for place, other in enumerate(others) if match(item, other, lenient)[0]), None)
        if found is None:
            return False, f"{item} is not among the answer's"
        del others[found]
    return True, "the same values in any order"


def _distinct(items: list[Reading]) -> list[Reading]:
    kept: list[Reading] = []
    for item in items:
        if not any(match(item, other, False)[0] for other in kept):
            kept.append(item)
    return kept


def _several_with_region(several: Several, region: Region, lenient: bool) -> Match:
    named = any(isinstance(item, Quantity) and item.name for item in several.items)
    if lenient and several.kind == "tuple" and named:
        return False, "values of several unknowns are not a set of numbers"
    converted = as_region(replace(several, kind="set") if several.kind == "list" else several)
    if converted is None:
        return False, f"a {several.kind} is not a set of numbers"
    return _regions(converted, region, lenient)


# Sets of numbers, relations and functions.


def _regions(first: Region, second: Region, lenient: bool) -> Match:
    if not _same_name(first.name, second.name, lenient):
        return False, f"the unknown {first.name} is not {second.name}"
    equal = len(first.parts) == len(second.parts) and all(
        (one.low_in, one.high_in) == (other.low_in, other.high_in)
        and equal_values(one.low, other.low)
        and equal_values(one.high, other.high)
        for one, other in zip(first.parts, second.parts, strict=True)
    )
    return _said(equal, "the same set of numbers", "different sets of numbers")


def _relations(first: Relation, second: Relation, lenient: bool) -> Match:
    if first.sign != second.sign:
        return False, f"{first.sign} is not {second.sign}"
    if first.sign in ("∣", "∤"):
        equal = equal_values(first.left, second.left) and equal_values(first.right, second.right)
        return _said(equal, "the same sides", "different sides")
    names = symbols(first.left) | symbols(first.right)
    if names != symbols(second.left) | symbols(second.right):
        return False, "different variables"
    one, other = (Node("add", (rel.left, Node("neg", (rel.right,)))) for rel in (first, second))
    equal = _proportional(one, other, first.sign in ("<", "≤"))
    return _said(equal, "one is a multiple of the other", "neither is a multiple of the other")


def _proportional(one: Node, other: Node, positive: bool) -> bool:
    """Whether one expression is a constant times the other, a positive constant where that matters."""
    at = sample_point(one, other)
    factors = replace_symbols(other, at), replace_symbols(one, at)
    values = [real_value(factor) for factor in factors]
    if any(value is None or value == 0 for value in values):
        return equal_values(one, other)
    if positive and (values[0] > 0) != (values[1] > 0):
        return False
    return equal_values(Node("mul", (one, factors[0])), Node("mul", (other, factors[1])))


def _functions(first: Function, second: Function, lenient: bool) -> Match:
    if first.name != second.name or len(first.parameters) != len(second.parameters):
        return False, f"{first.name} is not {second.name}"
    bound = {name: sym(f"#{place}") for place, name in enumerate(first.parameters)}
    other = {name: sym(f"#{place}") for place, name in enumerate(second.parameters)}
    equal = equal_values(replace_symbols(first.body, bound), replace_symbols(second.body, other))
    return _said(equal, "the same function of its parameters", "different values")


def _function_with_value(function: Function, value: Quantity, lenient: bool) -> Match:
    if not lenient or value.name not in (None, "y", function.name):
        return False, "a function is not a value"
    return _said(equal_values(function.body, value.node), "the function's value alone", "different values")


def _relation_with_value(relation: Relation, value: Quantity, lenient: bool) -> Match:
    if value.name is None or (not lenient and not symbols(value.node)):
        return False, "an equation is not a value"
    return _relations(relation, Relation("=", sym(value.name), value.node), lenient)


def _relation_with_region(relation: Relation, region: Region, lenient: bool) -> Match:
    part = region.parts[0] if len(region.parts) == 1 else None
    if not lenient or region.name is None or part is None:
        return False, "a relation is not a set of numbers"
    unknown = sym(region.name)
    if part.low == MINUS_INFINITY and part.high != INFINITY:
        return _relations(relation, Relation("≤" if part.high_in else "<", unknown, part.high), lenient)
    if part.high == INFINITY and part.low != MINUS_INFINITY:
        return _relations(relation, Relation("≤" if part.low_in else "<", part.low, unknown), lenient)
    return False, "a relation is not a set of numbers"


# Numbers written in other ways.


def _congruences(first: Congruence, second: Congruence, lenient: bool) -> Match:
    if not _same_name(first.name, second.name, lenient):
        return False, f"the unknown {first.name} is not {second.name}"
    if not equal_values(first.modulus, second.modulus):
        return False, "different moduli"
    distance = Node("div", (Node("add", (first.residue, Node("neg", (second.residue,)))), first.modulus))
    if not symbols(distance):
        value = exact(distance)
        return _said(value is not None and value.denominator == 1, "the same class", "different classes")
    return _said(equal_values(first.residue, second.residue), "the same class", "different classes")


def _congruence_with_value(congruence: Congruence, value: Quantity, lenient: bool) -> Match:
    """`3 + 5k` for the class of 3 modulo 5: one letter, whose step is the modulus."""
    names = symbols(value.node)
    if not lenient or len(names) != 1 or symbols(congruence.residue) | symbols(congruence.modulus):
        return False, "a congruence is not a value"
    values = [exact(replace_symbols(value.node, dict.fromkeys(names, num(k)))) for k in range(4)]
    steps = {second - first for first, second in pairwise(values) if first is not None and second is not None}
    modulus = exact(congruence.modulus)
    if values[0] is None or modulus is None or len(steps) != 1 or abs(steps.pop()) != modulus:
        return False, "different steps"
    return _congruences(congruence, Congruence(value.name, num(values[0]), congruence.modulus), lenient)


def _based(first: Based, second: Based, lenient: bool) -> Match:
    return _said(first.value == second.value, "the same number", "different numbers")


def _based_with_value(based: Based, value: Quantity, lenient: bool) -> Match:
    if exact(value.node) == based.value and value.unit is None:
        return True, "the same number in base 10"
    plain = lenient and value.places == 0 and str(exact(value.node)) == based.digits
    return _said(plain, "the same digits, the base left out", "different numbers")


def _value_with_based(value: Quantity, based: Based, lenient: bool) -> Match:
    """A reference without a base is in base 10."""
    return _based_with_value(based, value, False)


def _ratios(first: Ratio, second: Ratio, lenient: bool) -> Match:
    if len(first.terms) != len(second.terms):
        return False, "different numbers of terms"
    pairs = list(zip(first.terms, second.terms, strict=True))
    if all(equal_values(one, other) for one, other in pairs):
        return True, "the same terms"
    if not lenient or _minutes(first) is not None or any(exact(term) == 0 for pair in pairs for term in pair):
        return False, "different terms"
    base = pairs[0]
    crossed = [(Node("mul", (one, base[1])), Node("mul", (other, base[0]))) for one, other in pairs[1:]]
    equal = all(equal_values(one, other) for one, other in crossed)
    return _said(equal, "the same ratio, reduced", "different ratios")


def _ratio_with_value(ratio: Ratio, value: Quantity, lenient: bool) -> Match:
    if not lenient or len(ratio.terms) != 2 or value.places or _minutes(ratio) is not None:
        return False, "a ratio is not a value"
    quotient = Node("div", ratio.terms)
    return _said(equal_values(quotient, value.node), "the ratio as a fraction", "different values")


def _minutes(ratio: Ratio) -> int | None:
    """Minutes after midnight, where the ratio may be a time: 7:30."""
    values = [exact(term) for term in ratio.terms]
    if len(values) != 2 or any(value is None or value.denominator != 1 for value in values):
        return None
    hour, minute = int(values[0] or 0), int(values[1] or 0)
    return hour * 60 + minute if 0 <= hour < 24 and 10 <= minute < 60 else None


def _clocks(first: TimeOfDay, second: TimeOfDay, lenient: bool) -> Match:
    return _said(first.minutes == second.minutes, "the same time", "different times")


def _clock_with_ratio(clock: TimeOfDay, ratio: Ratio, lenient: bool) -> Match:
    values = [exact(term) for term in ratio.terms]
    if len(values) != 2 or any(value is None or value.denominator != 1 for value in values):
        return False, "a ratio is not a time"
    minutes = int(values[0] or 0) * 60 + int(values[1] or 0)
    if minutes == clock.minutes and values[0] and values[0] > 12:
        return True, "the same time"
    half = lenient and 0 < (values[0] or 0) <= 12 and minutes % 720 == clock.minutes % 720
    return _said(half, "the same time, the half of the day left out", "different times")


def _matrices(first: Matrix, second: Matrix, lenient: bool) -> Match:
    if (first.columns, len(first.entries)) != (second.columns, len(second.entries)):
        return False, "different sizes"
    equal = all(equal_values(one, other) for one, other in zip(first.entries, second.entries, strict=True))
    return _said(equal, "equal entries", "different entries")


def _cases(first: Cases, second: Cases, lenient: bool) -> Match:
    others = list(second.rows)
    for value, condition in first.rows:
        found = next(
            (
                row
                for row in others
                if match(value, row[0], lenient)[0] and match(condition, row[1], lenient)[0]
            ),
            None,
        )
        if found is None:
            return False, "a case differs"
        others.remove(found)
    return _said(not others, "the same cases", "different numbers of cases")


# Letters and words.


def _choices(first: ChoiceLetter, second: ChoiceLetter, lenient: bool) -> Match:
    equal = first.letter == second.letter or (lenient and first.letter.upper() == second.letter.upper())
    return _said(equal, "the same letter", "different letters")


def _choice_with_value(choice: ChoiceLetter, value: Quantity, lenient: bool) -> Match:
    if value.node.op == "sym" and not value.name:
        letter = value.node.args[0]
        equal = letter == choice.letter or (
            lenient and letter.upper() == choice.letter.upper() and len(letter) == 1
        )
        return _said(equal, "the same letter", "different letters")
    if lenient and choice.rest is not None:
        return match(choice.rest, value, lenient)
    return False, "a choice is not a value"


def _choice_with_other(choice: ChoiceLetter, other: Any, lenient: bool) -> Match:
    if lenient and choice.rest is not None:
        return match(choice.rest, other, lenient)
    return False, f"a choice is not {_FORMS[type(other)]}"


def _words(first: Words, second: Words, lenient: bool) -> Match:
    if first.text == second.text:
        return True, "the same words"
    equal = lenient and first.text in _YES and _YES[first.text] == _YES.get(second.text)
    return _said(equal, "words for the same truth value", "different words")


def _words_with_value(words: Words, value: Quantity, lenient: bool) -> Match:
    """AB for the segment AB."""
    name = str(value.node.args[0]) if value.node.op == "sym" else ""
    equal = (
        lenient
        and name.startswith("overline ")
        and sorted(name.removeprefix("overline ").lower()) == sorted(words.text)
    )
    return _said(equal, "the same segment", "words are not a value")


def _words_with_region(words: Words, region: Region, lenient: bool) -> Match:
    equal = lenient and not region.parts and words.text in ("no solution", "no real solutions", "none")
    return _said(equal, "no solution is the empty set", "words are not a set of numbers")


_RULES: dict[tuple[type, type], Callable[[Any, Any, bool], Match]] = {
    (Quantity, Quantity): match_quantities,
    (Several, Several): _several,
    (Several, Region): _several_with_region,
    (Region, Region): _regions,
    (Relation, Relation): _relations,
    (Relation, Quantity): _relation_with_value,
    (Relation, Region): _relation_with_region,
    (Function, Function): _functions,
    (Function, Quantity): _function_with_value,
    (Congruence, Congruence): _congruences,
    (Congruence, Quantity): _congruence_with_value,
    (Based, Based): _based,
    (Based, Quantity): _based_with_value,
    (Quantity, Based): _value_with_based,
    (Ratio, Ratio): _ratios,
    (Ratio, Quantity): _ratio_with_value,
    (TimeOfDay, TimeOfDay): _clocks,
    (TimeOfDay, Ratio): _clock_with_ratio,
    (Matrix, Matrix): _matrices,
    (Cases, Cases): _cases,
    (ChoiceLetter, ChoiceLetter): _choices,
    (ChoiceLetter, Quantity): _choice_with_value,
    (Words, Words): _words,
    (Words, Region): _words_with_region,
    (Words, Quantity): _words_with_value,
    **{(ChoiceLetter, form): _choice_with_other for form in _FORMS if form not in (ChoiceLetter, Quantity)},
}
