"""LaTeX macros whose backslash was read as an escape: JSON reads the start of `"\\frac"` as a form feed.

In: a text. Out: the control character that stands for the start of a macro, explained. Tabs and line breaks
    are common in honest texts, so they count only before what is left of a macro and is no word.
"""

import re
import unicodedata

_LETTERS = {"\x07": "a", "\b": "b", "\t": "t", "\n": "n", "\v": "v", "\f": "f", "\r": "r"}
_NAMES = {
    "\x00": "a NUL character",
    "\x07": "a bell character",
    "\b": "a backspace",
    "\t": "a tab",
    "\n": "a newline",
    "\v": "a vertical tab",
    "\f": "a form feed",
    "\r": "a carriage return",
    "\x1b": "an escape character",
}


def _lost(control: str, macros: str) -> str:
    """A pattern of these macros, with `control` in place of the backslash and the first letter."""
    rests = sorted((macro[1:] for macro in macros.split()), key=len, reverse=True)
    return f"{control}(?:{'|'.join(rests)})(?![A-Za-z])"


_TAB, _NEWLINE, _RETURN = r"\t", r"\n", r"\r(?!\n)"

# What is left of these macros begins no word of a language, wherever it stands.
_ANYWHERE = re.compile(
    "|".join(
        (
            r"\t(?:ext[a-z]*\{|frac[{\d\\]|binom\{)",
            _lost(_TAB, "times theta triangle triangleq triangleleft triangleright tilde therefore"),
            _lost(_TAB, "thickapprox thicksim textstyle twoheadrightarrow twoheadleftarrow"),
            _lost(_NEWLINE, "nabla notin newcommand newline noindent nonumber nolimits notag normalsize"),
            _lost(_NEWLINE, "nearrow nwarrow natural"),
            _lost(_RETURN, "right rightarrow rightharpoonup rightleftharpoons rVert"),
        )
    )
)
# What is left of these is no formula. A tab in the middle of a formula's line is no indentation.
_IN_FORMULA = re.compile(
    "|".join(
        (
            _lost(r"(?<=[^\s&])[ ]*\t", "tan tanh tau to top tag tiny"),
            r"\neq(?=[\s\d{}\\(+-]|\Z)",
            _lost(_NEWLINE, "nleq ngeq nleqslant ngeqslant nsubseteq nsupseteq"),
            _lost(_RETURN, "rho rangle rfloor rceil rvert rtimes"),
        )
    )
)
# An answer has no indentation, no second line that is only a letter, and no space before its line break.
_IN_ANSWER = re.compile(
    "|".join(
        (
            _lost(r"^\t", "tan tanh tau to top"),
            r"(?<!\n)\nu(?![A-Za-z\n])(?!.*[=\n])",
            _lost(r"(?<=\S )\n", "ne neg nmid not ncong nexists nparallel") + r"(?!.*[=\n])",
        )
    )
)
_FORMULA = re.compile(r"\$\$.*?\$\$|\$[^$]{1,200}\$|\\\(.*?\\\)|\\\[.*?\\\]|\\boxed\{[^}]*\}?", re.DOTALL)
_LONGEST_ANSWER = 200
"""A longer answer is a text, which holds formulas."""


def lost_macro(text: str, is_answer: bool) -> str | None:
    """The first macro that lost its backslash, in words; None where there is certainly none.

    Args:
        is_answer: A short answer is a formula as a whole.
    """
    is_formula = is_answer and len(text) <= _LONGEST_ANSWER and len(text.strip().splitlines()) <= 2
    if found := _ANYWHERE.search(text) or (is_formula and _IN_ANSWER.search(text)):
        return control_character(text, found.start())
    formulas = [text] if is_formula else [match[0] for match in _FORMULA.finditer(text)]
    for formula in formulas:
        if found := _IN_FORMULA.search(formula):
            return control_character(formula, found.start())
    return None


def control_character(text: str, start: int) -> str:
    """The first control character of a text after `start`, and how it probably came there, in words."""
    position = next(place for place in range(start, len(text)) if unicodedata.category(text[place]) == "Cc")
    character = text[position]
    name = f"{_NAMES.get(character, 'a control character')} (U+{ord(character):04X})"
    near = repr(text[max(0, position - 10) : position + 20])
    rest = re.match("[A-Za-z]*", text[position + 1 :])
    if character in _LETTERS and rest and rest[0]:
        letter = _LETTERS[character]
        macro = f"{letter}{rest[0]}"
        return (
            f"{name} in {near}: probably a LaTeX macro behind a single backslash, since JSON and Python read "
            f'the start of "\\{macro}" as {_NAMES[character]}; write "\\\\{macro}"'
        )
    if character >= "\x80":
        return (
            f"{name} in {near}: probably Windows-1252 that was read as Latin-1; read it again, or remove it"
        )
    return f"{name} in {near}; remove it"
