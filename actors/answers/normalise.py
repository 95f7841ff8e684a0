"""The many spellings of an answer, reduced to one LaTeX: Unicode, fonts, delimiters, spacing, synonyms.

In: a text. Out: a text that means the same to a reader. Nothing that carries meaning is dropped here.
"""

import re
import unicodedata
from functools import lru_cache

from actors.answers.numerals import join_digit_groups, word_set

LONGEST = 4_000
"""Characters of an answer that is read."""
LONGEST_REMEMBERED = 500
"""Characters of a text whose reading is kept: a few thousand long ones would fill the memory."""

_SYMBOLS = {
    "−": "-", "‐": "-", "‑": "-", "–": "-", "—": "-", "×": r"\times ", "·": r"\cdot ", "⋅": r"\cdot ",
    "∙": r"\cdot ", "∗": "*", "÷": r"\div ", "∕": "/", "⁄": "/", "≤": r"\le ", "⩽": r"\le ", "≦": r"\le ",
    "≥": r"\ge ", "⩾": r"\ge ", "≧": r"\ge ", "≠": r"\ne ", "≈": r"\approx ", "≡": r"\equiv ", "∈": r"\in ",
    "∪": r"\cup ", "∩": r"\cap ", "∖": r"\setminus ", "∅": r"\emptyset ", "⌀": r"\emptyset ", "∞": r"\infty ",
    "π": r"\pi ", "°": r"^\circ ", "º": r"^\circ ", "′": "'", "’": "'", "″": "''", "”": "''", "“": "''",
    "±": r"\pm ", "∓": r"\mp ", "∣": r"\mid ", "∤": r"\nmid ", "…": r"\ldots ", "⋯": r"\ldots ",
    "⌊": r"\lfloor ", "⌋": r"\rfloor ", "⌈": r"\lceil ", "⌉": r"\rceil ", "⟨": r"\langle ", "⟩": r"\rangle ",
    "〈": r"\langle ", "〉": r"\rangle ", "∠": r"\angle ", "△": r"\triangle ", "ℝ": r"\mathbb{R}",
    "ℤ": r"\mathbb{Z}", "ℕ": r"\mathbb{N}", "ℚ": r"\mathbb{Q}", "ℂ": r"\mathbb{C}", "‰": r"\permille ",
    "¢": r"\text{ cents}", "€": r"\euro ", "£": r"\pound ", "¥": r"\yen ", "₹": r"\rupee ", "∑": r"\sum ",
    "∏": r"\prod ", "→": r"\to ", "∧": r"\text{ and }", "∨": r"\text{ or }", "∥": r"\parallel ",
    "⊥": r"\perp ", "ⅈ": "i", "ⅇ": "e", "∶": ":", "，": ",", "。": ".", "；": ";",
    "α": r"\alpha ", "β": r"\beta ", "γ": r"\gamma ", "δ": r"\delta ", "ε": r"\epsilon ", "θ": r"\theta ",
    "λ": r"\lambda ", "μ": r"\mu ", "ρ": r"\rho ", "σ": r"\sigma ", "τ": r"\tau ", "φ": r"\phi ",
    "ϕ": r"\phi ", "ω": r"\omega ", "Δ": r"\Delta ", "Ω": r"\Omega ", "ξ": r"\xi ", "η": r"\eta ",
    "\u200b": "", "\u200c": "", "\u200d": "", "\u2060": "", "\ufeff": "", "\u00ad": "",
}  # fmt: skip
_SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁽⁾ⁿⁱˣ", "0123456789+-()nix", strict=True))
_SUBSCRIPTS = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₙ", "0123456789+-()n", strict=True))
_RAISED = re.compile(f"[{re.escape(''.join(_SUPERSCRIPTS))}]+")
_LOWERED = re.compile(f"[{re.escape(''.join(_SUBSCRIPTS))}]+")

_SYNONYMS = {
    "dfrac": "frac", "tfrac": "frac", "cfrac": "frac", "dbinom": "binom", "tbinom": "binom",
    "leqslant": "le", "leq": "le", "leqq": "le", "lt": "<", "geqslant": "ge", "geq": "ge", "geqq": "ge",
    "gt": ">", "neq": "ne", "dots": "ldots", "cdots": "ldots", "dotsc": "ldots", "dotsb": "ldots",
    "dotso": "ldots", "varnothing": "emptyset", "degree": "^\\circ", "prime": "'", "lbrace": "\\{",
    "rbrace": "\\}", "lbrack": "[", "rbrack": "]", "ast": "*", "colon": ":", "vert": "|", "bmod": "mod",
    "smallsetminus": "setminus", "backslash": "setminus", "lparen": "(", "rparen": ")", "divides": "mid",
    "ltimes": "times", "bullet": "cdot", "wedge": "text{ and }", "land": "text{ and }", "vee": "text{ or }",
    "lor": "text{ or }", "varepsilon": "epsilon", "varphi": "phi", "vartheta": "theta", "simeq": "approx",
    "thickapprox": "approx", "euros": "euro", "pounds": "pound", "arcctg": "arccot", "tg": "tan",
    "ctg": "cot", "arctg": "arctan", "cosec": "csc", "arcsec": "arcsec", "space": " ", "dotsm": "ldots",
    "triangleq": "triangle", "measuredangle": "angle", "doteq": "=", "Reals": "mathbb{R}",
    "R": "mathbb{R}", "Z": "mathbb{Z}", "N": "mathbb{N}", "Q": "mathbb{Q}",
}  # fmt: skip
_COMMAND = re.compile(r"\\([A-Za-z]+)")

_NO_MEANING = re.compile(
    r"\\(?:left|right|bigl|bigr|Bigl|Bigr|biggl|biggr|Biggl|Biggr|big|Big|bigg|Bigg|middle|displaystyle"
    r"|textstyle|scriptstyle|limits|nolimits|large|Large|LARGE|huge|Huge|normalsize|small|footnotesize"
    r"|boldmath|rm|bf|it|sf|tt|cal|phantom\{\}|strut|nobreak|allowbreak|hfill|noindent|centering|null)"
    r"(?![A-Za-z])"
)
_EMPTY = re.compile(
    r"\\(?:left|right)\s*\.|\{\s*\}(?=\s*[\^_])|\\[hv]?phantom\s*\{[^{}]*\}|\\[hv]space\*?\s*\{[^{}]*\}"
)
_SPACE = re.compile(
    r"(?<!\\)\\(?:[,;:>! ]|(?:quad|qquad|enspace|thinspace|medspace|thickspace|negthinspace)(?![A-Za-z]))"
)
_WIDE_SPACE = re.compile(r"(?<!\\)\\(?:[;: ]|(?:quad|qquad|enspace)(?![A-Za-z]))")
_FONT = re.compile(
    r"\\(?:boldsymbol|mathbf|bm|pmb|mathit|mathsf|mathtt|mathnormal|mathcal|mathscr|boxed|fbox)\b\s*"
)
_TEXT = re.compile(
    r"\\(?:textbf|textit|textrm|textsf|texttt|textnormal|emph|mbox|hbox|underline|textsc)\b\s*(?=\{)"
)
_COLOR = re.compile(r"\\(?:textcolor|color|colorbox)\s*\{[A-Za-z!0-9]*\}")
_UPRIGHT = re.compile(r"\\(?:mathrm|operatorname\*?|text|mathop)\s*\{\s*([A-Za-z]+)\s*\}")
_UPRIGHT_OTHER = re.compile(r"\\mathrm\s*(?=\{)|\\operatorname\*?\s*(?=\{)")
_BRACED = re.compile(r"\\(?:mathrm|text)\s*\{\s*([-+]?[\d.,]+|[^A-Za-z0-9{}\\]*)\s*\}")

FUNCTION_NAMES = word_set(
    "sin cos tan cot sec csc arcsin arccos arctan arccot arcsec arccsc sinh cosh tanh coth sech csch arsinh "
    "arcosh artanh ln lg log exp gcd lcm max min sgn deg det dim"
)
"""Names of functions, as LaTeX commands and as plain words."""


def normalise(text: str) -> str:
    r"""One spelling of `text`, still LaTeX.

    Spaces are single; they stay where a reader sees them. Commands for size, font, colour and delimiters are
    gone. `\text{...}` stays, except around a number, `e`, `i`, or the name of a function.
    """
    text = _repaired(text)
    text = _plain_unicode(text)
    text = _without_delimiters(text)
    text = text.replace(r"\left|", r"\lvert ").replace(r"\right|", r"\rvert ")
    text = text.replace(r"\left\{", r"\{").replace(r"\right\}", r"\}")
    text = _EMPTY.sub(" ", text)
    text = _NO_MEANING.sub(" ", text)
    text = _COLOR.sub(" ", text)
    text = _FONT.sub(" ", text)
    text = _TEXT.sub(r"\\text", text)
    text = _UPRIGHT.sub(_upright, text)
    text = _UPRIGHT_OTHER.sub(r"\\text", text)
    text = _BRACED.sub(r" \1 ", text)
    text = _COMMAND.sub(_synonym, text)
    text = re.sub(r"\^\s*\{\s*\\circ\s*\}|\^\s*\\circ|(?<=\d)\^\{?[oO]\}?(?![A-Za-z])", r"^\\circ ", text)
    text = re.sub(r"(?:(?<![\w)}\\])|^)[_^]\{?(\w+)\}?\s*C\s*_\{?(\w+)\}?", r"\\binom{\1}{\2}", text)
    text = text.replace(r"\%", "%").replace(r"\$", r"\dollar ").replace(r"\#", "#").replace(r"\&", "&")
    text = _ORDINAL.sub("", text)
    text = join_digit_groups(text)
    text = _WIDE_SPACE.sub("  ", text.replace("~", " "))
    text = re.sub(r"\\!", "", text)
    text = _SPACE.sub(" ", text)
    text = re.sub(r"\.\.\.+", r"\\ldots ", text)
    text = re.sub(r"\s+", " ", text).strip()
    return _without_ends(text)


_remembered = lru_cache(maxsize=8192)(normalise)


def normal_form(text: str) -> str:
    """The text normalised; one that is too long to be read is left as it is."""
    if len(text) > LONGEST:
        return text
    return _remembered(text) if len(text) <= LONGEST_REMEMBERED else normalise(text)


def text_key(normalised: str) -> str:
    """What two texts that are the same to a reader share: no spaces, no braces around one sign."""
    key = re.sub(r"(?<=\\)([A-Za-z]+) (?=[A-Za-z])|(?<=\d) (?=[\d.])", r"\1~", normalised).replace(" ", "")
    return re.sub(r"([_^])\{(\w)\}", r"\1\2", key)


def _repaired(text: str) -> str:
    r"""Undo two accidents of escaping: `\\frac` for `\frac`, and a form feed or backspace for `\f`, `\b`."""
    text = re.sub("\x0c(?=[a-z])", r"\\f", text)
    text = re.sub("\x08(?=[a-z])", r"\\b", text)
    text = re.sub("\t(?=(?:ext|imes|heta|frac|an|au|riangle)[^a-z])", r"\\t", text)
    if r"\\begin" in text or (r"\begin" not in text and re.search(r"\\\\[A-Za-z({\[%$]", text)):
        text = text.replace("\\\\", "\\")
    return text


def _plain_unicode(text: str) -> str:
    if text.isascii():
        return text
    text = re.sub(r"(?<=\d)\s*–\s*(?=\d)", r" \\ndash ", text)  # between numbers it is a range
    text = _RAISED.sub(lambda run: "^{" + "".join(_SUPERSCRIPTS[sign] for sign in run[0]) + "}", text)
    text = _LOWERED.sub(lambda run: "_{" + "".join(_SUBSCRIPTS[sign] for sign in run[0]) + "}", text)
    text = re.sub(r"([√∛∜])\s*(\d+(?:\.\d+)?|[A-Za-z]|\((?:[^()]|\([^()]*\))*\)|(?=\{)|(?=\\?))", _root, text)
    return "".join(_plain_character(character) for character in text)


def _plain_character(character: str) -> str:
    if character.isascii():
        return character
    if character in _SYMBOLS:
        return _SYMBOLS[character]
    if character.isspace():
        return " "
    compatible = unicodedata.normalize("NFKC", character)
    if "⁄" in compatible:  # a vulgar fraction
        above, below = compatible.split("⁄")
        return rf" \frac{{{above}}}{{{below}}}" if below else character
    if character.isdecimal():
        return str(unicodedata.decimal(character))
    return compatible if compatible.isascii() else character


def _root(match: re.Match[str]) -> str:
    degree = {"√": "", "∛": "[3]", "∜": "[4]"}[match[1]]
    return rf"\sqrt{degree}{{{match[2]}}}" if match[2] else rf"\sqrt{degree}"


def _without_delimiters(text: str) -> str:
    r"""Without `$...$`, `\(...\)` and `\[...\]`; a dollar in front of a number alone is the currency."""
    for opening, closing in ((r"\(", r"\)"), (r"\[", r"\]")):
        if text.count(opening) == text.count(closing) > 0 and r"\\[" not in text:
            text = text.replace(opening, " ").replace(closing, " ")
    text = text.replace(r"\$$", r"\$")
    if re.fullmatch(r"\s*[-+]?\s*\$\s*[-+]?[\d.][\d.,]*(?:[^$\\]|\\[^$])*", text):
        return text.replace("$", r"\$", 1)
    return re.sub(r"(?<!\\)\$", " ", text)


def _upright(match: re.Match[str]) -> str:
    name = match[1]
    if name in FUNCTION_NAMES or name in ("mod", "pi"):
        return rf"\{name} "
    if name in ("e", "i") and not match[0].startswith(r"\text"):
        return f" {name} "
    return rf"\text{{{match[0].partition('{')[2][:-1]}}}"


def _synonym(match: re.Match[str]) -> str:
    meaning = _SYNONYMS.get(match[1])
    if meaning is None:
        return match[0]
    return rf"\{meaning}" if meaning[0].isalpha() else f"{meaning} "


_ENDS = re.compile(r"^(?:\*\*(?P<bold>[^*].*[^*]|[^*])\*\*|`(?P<code>[^`]+)`|\"(?P<quoted>[^\"]+)\")$")
_ORDINAL = re.compile(r"(?<=\d)\s?(?:\^\s*\{?)?(?:\\text\s*\{\s*)?(?:st|nd|rd|th)(?![A-Za-z])\s*\}{0,2}")
_END_MARKS = re.compile(
    r"(?:\s*(?:\\\\|\\(?:checkmark|square|blacksquare|Box|qed|newline)(?![A-Za-z])|[✓✔✅■□]))+$"
)
_LABEL = re.compile(
    r"^(?:\\text\{\s*)?(?:(?:the\s+)?(?:final\s+)?answer(?:\s+is)?|ans)\s*(?:[:=]|(?<=is))\s*"
    r"(?P<rest>\}?.*)$",
    re.IGNORECASE,
)


def _without_ends(text: str) -> str:
    """Without Markdown around the text, the words `Answer:` before it, and punctuation after it."""
    if match := _ENDS.match(text):
        text = next(inner for inner in match.groups() if inner is not None).strip()
    while _is_one_group(text):
        text = text[1:-1].strip()
    if match := _LABEL.match(text):
        rest = match["rest"]
        text = rest[1:] if rest.startswith("}") else (rest[:-1] if text.startswith(r"\text{") else rest)
    text = re.sub(r"^(?:=|\\approx|\\to|\\therefore|\\Rightarrow|\\implies)(?![A-Za-z])\s*", "", text.strip())
    text = _END_MARKS.sub("", text)
    while text and text[-1] in ".,;" and not text.endswith((r"p.m.", r"a.m.")):
        text = text[:-1].rstrip()
    return text.strip()


def _is_one_group(text: str) -> bool:
    """Whether braces without meaning are around the whole text; `{1, 2}` is a set in plain text."""
    if not text.startswith("{") or not text.endswith("}") or "," in text or "\\" in text[-2:-1]:
        return False
    depth = 0
    for place, sign in enumerate(text):
        if text[place - 1 : place] != "\\":
            depth += {"{": 1, "}": -1}.get(sign, 0)
        if depth == 0 and place < len(text) - 1:
            return False
    return depth == 0
