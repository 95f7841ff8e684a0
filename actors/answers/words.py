"""Words in answers: which runs of letters are words, and which words mean the same."""

import re
from fractions import Fraction

from actors.answers.numerals import word_set

_NUMBER_WORDS = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen"
)
_NUMBERS = _NUMBER_WORDS.split()
_TEN_WORDS = "twenty thirty forty fifty sixty seventy eighty ninety"
_TENS = _TEN_WORDS.split()
_BASES = {"binary": 2, "ternary": 3, "octal": 8, "decimal": 10, "hexadecimal": 16}

_SAME = {
    "dne": "does not exist", "doesnt exist": "does not exist", "do not exist": "does not exist",
    "no limit": "does not exist", "no solutions": "no solution", "there is no solution": "no solution",
    "there are no solutions": "no solution", "no such solution": "no solution", "none exist": "none",
    "no real solution": "no real solutions", "true": "true", "correct": "correct", "incorrect": "incorrect",
    "empty set": "empty set", "null set": "empty set", "not defined": "undefined",
    "all integers": "integers", "set of integers": "integers", "set of all integers": "integers",
    "natural numbers": "naturals", "all natural numbers": "naturals", "positive integers": "naturals",
    "all positive integers": "naturals", "rational numbers": "rationals", "all rational numbers": "rationals",
    "complex numbers": "complexes", "all complex numbers": "complexes",
    "positive real numbers": "all positive real numbers", "positive reals": "all positive real numbers",
    "all positive reals": "all positive real numbers", "negative real numbers": "all negative real numbers",
    "nonnegative real numbers": "all nonnegative real numbers",
    "all non negative real numbers": "all nonnegative real numbers",
    "all reals": "all real numbers", "all real": "all real numbers", "any real number": "all real numbers",
    "every real number": "all real numbers", "reals": "all real numbers", "real numbers": "all real numbers",
    "set of all real numbers": "all real numbers", "set of real numbers": "all real numbers",
    "all real values": "all real numbers", "negative infinity": "minus infinity",
    "infinitely many solutions": "infinitely many", "infinitely many": "infinitely many",
    "an infinite number": "infinitely many", "infinite number": "infinitely many", "grey": "gray",
}  # fmt: skip
_ARTICLES = re.compile(r"^(?:the|an|a)\s+")
_MONTHS = word_set(
    "january february march april may june july august september october november december jan feb mar apr "
    "jun jul aug sep sept oct nov dec"
)
_NOT_COUNTED = word_set(
    "or and not no nor minus plus times over under than least most more less fewer about between from to "
    "through if then else when where with without by of for except only but either both neither is are was "
    "be squared cubed square cube half halves third thirds quarter quarters fifth fifths sixth tenth tenths "
    "root power factorial double triple twice thrice percent negative positive mod modulo base respectively "
    "approximately exactly around nearly almost greater smaller multiple multiples divided product sum "
    "difference million billion trillion thousand hundred dozen dozens hundreds thousands millions"
).union(_NUMBERS, _TENS)
_SHORT_WORDS = word_set(
    "yes not odd all any the are for one two six ten red men man cat dog cow pig hen fox boy car bus day old "
    "new out win won son box cup hat pen egg eggs pie nut toy toys bag bags cars boys cats dogs cows"
)
_IRREGULAR = {"people": "person", "men": "man", "women": "woman", "children": "child", "mice": "mouse"}
SCALES = {"dozen": 12, "dozens": 12, "hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9,
          "trillion": 10**12, "hundreds": 100, "thousands": 1000, "millions": 10**6}  # fmt: skip
"""Words after a number that multiply it."""


def is_word(run: str) -> bool:
    """Whether a bare run of letters is a word, and not a product of variables."""
    lower = run.lower()
    if lower in _SHORT_WORDS:
        return True
    if not (run.islower() or run.istitle() or (run.isupper() and len(run) > 4)) or set(lower) <= set("abcd"):
        return False
    return (len(run) >= 4 and bool(set(lower) & set("aeiouy"))) or (run.istitle() and len(run) == 3)


def is_label(run: str) -> bool:
    """Whether letters alone are a name or an order, such as ABC, and not a product, such as xy."""
    if len(run) < 2:
        return False
    if run.isupper() or run.istitle():
        return True
    if len(run) == 2 and run in ("no", "if", "up", "it", "he", "we"):
        return True
    return len(run) >= 3 and not any(
        set(run) <= set(family) for family in ("abcd", "xyzwt", "pqrst", "uvw", "ijklmn")
    )


def meaning(text: str) -> str:
    """Words without case, articles and punctuation; synonyms have one meaning."""
    words = re.sub(r"[^\w%/+.-]+", " ", text.casefold().replace("'", "").replace("’", ""))
    words = re.sub(r"(?<!\d)[.-]|[.-](?!\d)", " ", words)
    words = re.sub(r"\s+", " ", words).strip()
    words = _ARTICLES.sub("", words)
    return _SAME.get(words, words)


def date(text: str) -> str | None:
    """`14 March` and `March 14th` as one text; None for what is no date."""
    if re.search(r"[^A-Za-z0-9 ,.]", text):
        return None
    words = re.sub(r"(?<=\d)(?:st|nd|rd|th)\b", "", meaning(text)).replace(" of ", " ").split()
    months = [word for word in words if word in _MONTHS]
    days = [word for word in words if re.fullmatch(r"\d{1,2}", word)]
    years = [word for word in words if re.fullmatch(r"\d{4}", word)]
    if (
        len(months) == 1
        and len(days) <= 1
        and len(years) <= 1
        and len(months + days + years) == len(words) > 1
    ):
        return " ".join([months[0][:3], *days, *years])
    return None


def number_word(text: str) -> int | None:
    """The value of `twelve`, `twenty-one`, `a hundred`; None for other words."""
    words = (
        re.sub(r"[\s-]+", " ", text.casefold().strip())
        .removeprefix("a ")
        .removeprefix("one hundred ")
        .split()
    )
    hundred = 100 if re.match(r"one hundred \w", text.casefold().strip()) else 0
    if len(words) == 1 and words[0] in _NUMBERS:
        return hundred + _NUMBERS.index(words[0])
    if len(words) == 1 and words[0] in ("hundred", "thousand", "dozen"):
        return SCALES[words[0]]
    if words and words[0] in _TENS and len(words) <= 2:
        ones = _NUMBERS.index(words[1]) if len(words) == 2 and words[1] in _NUMBERS[1:10] else 0
        return None if len(words) == 2 and not ones else hundred + 20 + 10 * _TENS.index(words[0]) + ones
    return None


def fraction_word(text: str) -> Fraction | None:
    """The value of `one half`, `two thirds`, `three-quarters`; None for other words."""
    match = re.fullmatch(
        r"([a-z]+)[ -](hal(?:f|ves)|third|quarter|fourth|fifth|sixth|eighth|tenth)s?", text.casefold()
    )
    above = number_word(match[1]) if match else None
    below = {
        "half": 2,
        "halves": 2,
        "third": 3,
        "quarter": 4,
        "fourth": 4,
        "fifth": 5,
        "sixth": 6,
        "eighth": 8,
    }
    return None if match is None or above is None else Fraction(above, below.get(match[2], 10))


def base_word(text: str) -> int | None:
    """The base that `eight`, `8`, `base 8`, `base eight` or `octal` names; None for other words."""
    word = text.casefold().strip(" ()").removeprefix("in ").removeprefix("base").strip(" -")
    return int(word) if word.isdecimal() and len(word) < 3 else _BASES.get(word, number_word(word))


def counted(text: str) -> str | None:
    """What `apples` in `20 apples` counts, in the singular; None for words that may change the number."""
    words = meaning(text).split()
    if not 1 <= len(words) <= 4 or any(
        word in _NOT_COUNTED or not word.isalpha() or len(word) < 2 for word in words
    ):
        return None
    return " ".join(_singular(word) for word in words)


def _singular(word: str) -> str:
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if re.search(r"(?:s|x|ch|sh)es$", word):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word
