"""The text of a field: whether its author can have meant it.

In: a row of a data file and the name of a field. Out: the text, or a `DataError` that names file, line, field
and the likely cause.
"""

import math
import re
import reprlib
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from orchestrator.data.lost_macros import control_character, lost_macro
from orchestrator.errors import DataError

Row = Mapping[str, Any]

MOST_NAMES = 30
"""A message names so many fields of a row."""
LARGEST_EXPONENT = 10_000
"""A check of a number with a larger one would time out on each sample."""

MISSING: Any = object()
"""Stands for the value of a field that a row has not."""

_SURROGATE = re.compile("[\ud800-\udfff]")
# Tabs and line breaks belong to texts, NEL (U+0085) among them.
_CONTROL = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f]")
# Marks of direction, soft hyphens and zero-width spaces, but not joiners: these belong to words and emoji.
_INVISIBLE = re.compile("[\u00ad\u180e\u200b\u200e\u200f\u202a-\u202e\u2060\u2066-\u2069\ufeff]")
_SCIENTIFIC = re.compile(r"[+-]?[\d.]+[eE][+-]?0*(\d+)")


def field_value(row: Row, field: str, default: Any = None) -> Any:
    """The value of a field, which may be nested: `reward_model.ground_truth`, or `choices.0` for a list.

    A field whose own name has dots is found first.
    """
    if field in row:
        return row[field]
    value: Any = row
    for part in field.split("."):
        if isinstance(value, Mapping) and part in value:
            value = value[part]
        elif isinstance(value, list) and part.isdecimal() and int(part) < len(value):
            value = value[int(part)]
        else:
            return default
    return value


def field_text(row: Row, field: str, key: str, where: str, is_answer: bool = False) -> str:
    """The field's text without outer space; a number is text as its file writes it.

    Args:
        key: The setting that names the field, for messages.
        where: The file and line, for messages.
        is_answer: It is a reference answer, to which fewer characters can belong.

    Raises:
        DataError: The field is missing, empty, or neither text nor a number; or as `check_text`.
    """
    value = field_value(row, field, MISSING)
    if value is MISSING:
        names = ", ".join(map(shown, list(row)[:MOST_NAMES])) or "none"
        raise DataError(f"{where}: no field '{field}'; its fields are {names}: set {key} to one of them")
    place = f"{where}: '{field}'"
    if field in getattr(row, "repeated", ()):
        raise DataError(f"{place} is there more than once; leave one of them")
    if isinstance(value, int | float | Decimal) and not isinstance(value, bool):
        if not isinstance(value, int) and not math.isfinite(value):
            raise DataError(f"{place} is {value}, which equals no answer; correct the line or remove it")
        value = str(value)
    if not isinstance(value, str):
        raise DataError(
            f"{place} is {shown(value)}, neither text nor a number; correct the line, "
            f"or set {key} to another field"
        )
    if not value.strip():
        raise DataError(f"{place} is empty; complete the line or remove it")
    check_text(value, place, is_answer)
    return value.strip()


def answer_text(row: Row, field: str, key: str, where: str) -> str:
    """As `field_text`, for a reference answer; several answers in a list are joined by commas.

    Raises:
        DataError: As `field_text`.
    """
    parts = field_value(row, field)
    if not isinstance(parts, list) or not parts or any(isinstance(part, list | dict) for part in parts):
        return field_text(row, field, key, where, is_answer=True)
    return ", ".join(field_text({field: part}, field, key, where, is_answer=True) for part in parts)


def check_text(text: str, where: str, is_answer: bool = False) -> None:
    """Refuse a text that its author cannot have meant.

    Args:
        where: File, line and field, for the message.
        is_answer: It is a reference answer, to which fewer characters can belong.

    Raises:
        DataError: It holds a lone surrogate, a control character or what is left of a LaTeX macro. Or it is
            an answer that no response equals, or a number that no check compares in time.
    """
    if is_answer and (number := _SCIENTIFIC.fullmatch(text.strip())):
        if len(number[1]) > len(str(LARGEST_EXPONENT)) or int(number[1]) > LARGEST_EXPONENT:
            raise DataError(f"{where} is {shown(text)}, a number that no check compares in time; correct it")
        return
    if text.isascii() and text.isprintable():
        return
    refuse_lone_surrogates(text, where)
    if found := _CONTROL.search(text):
        raise DataError(f"{where} holds {control_character(text, found.start())}")
    if lost := lost_macro(text, is_answer):
        raise DataError(f"{where} holds {lost}")
    if is_answer and (found := _INVISIBLE.search(text)):
        raise DataError(
            f"{where} holds the invisible character U+{ord(found[0]):04X}, with which no answer is equal; "
            "remove it"
        )


def refuse_lone_surrogates(text: str, where: str) -> None:
    """Refuse half of a character, which no tokenizer and no file can hold.

    Raises:
        DataError: The text has one.
    """
    if found := _SURROGATE.search(text):
        raise DataError(
            f"{where} holds the lone surrogate U+{ord(found[0]):04X}, half of a character; write the whole "
            "character or remove it"
        )


def shown(value: object) -> str:
    """A value for a message, cut where it is long."""
    return _SHORT.repr(value)


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80
