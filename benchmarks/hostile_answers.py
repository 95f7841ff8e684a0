"""Answers that are made to break a checker: without end, too large, malformed, or dressed up as code.

In: a seeded generator of random numbers. Out: a kind and a response. `benchmarks/hostile.py` and the tests
check them.
"""

import random
import string
from collections.abc import Callable, Iterator
from dataclasses import dataclass

Random = random.Random


@dataclass(frozen=True)
class HostileAnswer:
    """One response, and what is hostile about it."""

    kind: str
    response: str


def hostile_answers(count: int, seed: int) -> Iterator[HostileAnswer]:
    """Hostile responses, of each kind by turns; the same ones for the same seed."""
    rng = Random(seed)
    kinds = list(KINDS)
    for number in range(count):
        kind = kinds[number % len(kinds)]
        text = KINDS[kind](rng)
        yield HostileAnswer(kind, text if kind in WHOLE_RESPONSES else _stated(rng, text))


def _stated(rng: Random, answer: str) -> str:
    """A response that states the answer, in most cases in a box."""
    forms = (
        rf"So \boxed{{{answer}}}.",
        rf"\boxed{{{answer}}}",
        rf"$\boxed{{{answer}}}$",
        rf"first \boxed{{1}}, then \boxed{{{answer}}}",
        f"The answer is {answer}",
        f"#### {answer}",
        answer,
    )
    return rng.choices(forms, (6, 6, 2, 1, 1, 1, 1))[0]


def _digits(rng: Random, most: int) -> str:
    return "".join(rng.choices(string.digits, k=rng.randint(1, most)))


def _tower(rng: Random) -> str:
    height = rng.randint(2, 7)
    levels = [str(rng.choice([2, 3, 9, 10, 99, "x", "e", "-9", "0.1"])) for _ in range(height)]
    text = "^{".join(levels) + "}" * (height - 1)
    if rng.random() < 0.3:
        return "**".join(levels)
    forms = ("{}", "{}!", "-{}", r"\sqrt{{{}}}", r"\frac{{1}}{{{}}}", "{0}-{0}", r"\sin({})")
    return rng.choice(forms).format(text)


def _factorial(rng: Random) -> str:
    number = rng.choice(["9", "99", "3001", "10^6", "10^{9}", "10^{10^{10}}", "-5", r"\pi", "n", "0.5"])
    return rng.choice(
        [f"{number}" + "!" * rng.randint(1, 60), f"({number}!)!", rf"\frac{{{number}!}}{{({number}-1)!}}",
         rf"\binom{{{number}}}{{{number}}}", rf"\prod_{{k=1}}^{{{number}}} k!", rf"\Gamma({number}!)"]
    )  # fmt: skip


def _matrix(rng: Random) -> str:
    rows, columns = rng.choice([(2, 2), (3, 1), (40, 40), (200, 200), (1, 3_000), (3_000, 1)])
    entry = rng.choice(["1", "x", "9^{99}", r"\frac{1}{2}", r"\begin{pmatrix}1\end{pmatrix}"])
    body = r"\\".join(" & ".join([entry] * columns) for _ in range(rows))
    name = rng.choice(["pmatrix", "bmatrix", "array", "vmatrix"])
    text = rf"\begin{{{name}}}{body}\end{{{name}}}"
    return rng.choice(["{}", "{}^{{-1}}", "{}^{{1000000}}", r"\det {}", "{0}{0}", "[[{}]]"]).format(text)


def _megabyte(rng: Random) -> str:
    unit = rng.choice(
        ["1", "x+", "1,", "(", "\\", " ", "{}", r"\frac{1}{2}", "0.", "-", "abc ", "é", "\n", "1/", "9^", "|"]
    )
    length = rng.choice([5_000, 50_000, 1_000_000])
    return (unit * (length // len(unit))) + rng.choice(["", "1", "!", "}"])


def _braces(rng: Random) -> str:
    marks = rng.choice(["{}", "{}()[]", r"{}\{\}", "()", "[]|", "{}$"])
    return "".join(rng.choices(marks, k=rng.randint(1, rng.choice([8, 200, 5_000]))))


def _nested(rng: Random) -> str:
    opening, closing = rng.choice(
        [("(", ")"), ("{", "}"), (r"\frac{1}{", "}"), (r"\sqrt{", "}"), (r"\{", r"\}"), ("[", "]"), ("|",
         "|"),
         ("f(", ")"), (r"\left(", r"\right)"), (r"\text{", "}"), ("x^{", "}"), (r"\sin ", ""), ("-", "")]
    )  # fmt: skip
    depth = rng.choice([10, 41, 300, 2_000, 20_000])
    return opening * depth + "1" + closing * depth


def _boxes(rng: Random) -> str:
    number = rng.choice([2, 50, 10_000])
    return rng.choice(
        [r"\boxed{1} " * number, r"\boxed{" * number, r"\boxed{" * number + "1" + "}" * number,
         r"\boxed{" * number + "1" + "}" * (number // 2), r"\boxed{}" * number, "\\boxed \n{7}" * number]
    )  # fmt: skip


def _control(rng: Random) -> str:
    signs = [
        chr(code) for code in (*range(32), 127, *range(128, 160), 0x2028, 0x2029, 0xFEFF, 0xFFFE, 0xFFFF)
    ]
    return _mixed_in(rng, signs)


def _surrogate(rng: Random) -> str:
    return _mixed_in(rng, [chr(code) for code in (0xD800, 0xDBFF, 0xDC00, 0xDFFF, 0x1F600, 0x10FFFF)])


def _direction(rng: Random) -> str:
    return _mixed_in(
        rng, [chr(code) for code in (0x202A, 0x202B, 0x202D, 0x202E, 0x2066, 0x2067, 0x200F, 0x5D0)]
    )


def _look_alike(rng: Random) -> str:
    return _mixed_in(rng, list("٤２４𝟒𝟐²₂½Ⅳ④一二٠०৪хеіπ−–∕⁄＋＝，．＼｛｝（）\u0301\u200b\u00a0ﬁſK"))


def _mixed_in(rng: Random, signs: list[str]) -> str:
    text = list(rng.choice(["42", r"\frac{1}{2}", "x+1", "(1,2)", r"\text{yes}", "1,234", r"\{1,2\}"]))
    for _ in range(rng.choice([1, 3, 100])):
        text.insert(rng.randint(0, len(text)), rng.choice(signs))
    return "".join(text)


CODE = [
    "__import__('os').system('touch {}')",
    "open('{}','w').write('1')",
    "().__class__.__bases__[0].__subclasses__()",
    "lambdify(x, '__import__(\"os\").system(\"touch {}\")')(1)",
    "lambda: open('{}','w')",
    "exec(\"open('{}','w')\")",
    "eval(compile('open(\"{}\",\"w\")','','exec'))",
    "Symbol('x').__class__.__init__.__globals__",
    "S('__import__(\"pathlib\").Path(\"{}\").touch()')",
    "sympify('open(\"{}\",\"w\")')",
    "x.subs(x, open('{}','w'))",
    "[c for c in ().__class__.__mro__[1].__subclasses__()]",
    "1 if open('{}','w') else 2",
    "f'{{open(\"{}\",\"w\")}}'",
    "breakpoint()", "exit()", "quit()", "while True: pass", "import os; os.abort()",
    "1.__class__", "(1).real", "1 (2)", "1 .real", "9**9**9**9", "9^9^9^9", "(9**9**9)(2)", "10**10**10",
    "'a'*10**12", "[0]*10**12", "1<<10**12", "2 ** 10 ** 13", "1e999999999999", "1.5e-999999999", "1/0",
    "0^0",
    "0**-1", "((((9^9)^9)^9)^9)^9", "1 / (2 - 2)", "3 * (4 + 5", "9 + + + 9", "1 // 2", "2 ^ -10^9",
]  # fmt: skip
"""Texts that do something, large or forbidden, when they run as Python; `{}` is a file that they make."""
MARK = "/tmp/laser-hostile-mark"
"""The file that a text of `CODE` makes when it runs."""


def _code(rng: Random) -> str:
    text = rng.choice(CODE).replace("{}", MARK)
    wrap = rng.choice(
        ["{}", "${}$", r"\text{{{}}}", r"\operatorname{{{}}}", r"\mathrm{{{}}}", "x={}", "{},1",
         r"\{{{}\}}", "({})",
         r"\frac{{{}}}{{2}}", r"$$ {} \nonsense", "@@ {} @@", r"\nonsense {} ", "= {}", r"\begin{{lambda}}{}"]
    )  # fmt: skip
    return wrap.format(text)


def _macro(rng: Random) -> str:
    loop = rng.choice(
        [r"\def\a{\a\a}\a", r"\newcommand{\x}{\x\x}\x", r"\let\frac\sqrt\frac12", r"\input{/etc/passwd}",
         r"\expandafter\def\csname a\endcsname{\a}\a", r"\loop\iftrue\repeat",
         r"\write18{touch " + MARK + "}",
         r"\begin{a}\begin{b}\end{a}\end{b}", r"\renewcommand\boxed[1]{#1#1}\boxed", r"\catcode`\{=12 {",
         r"\csname\csname", r"\verb|}|", r"\rule{99999999cm}{1pt}", r"\romannumeral 99999999"]
    )  # fmt: skip
    return loop * rng.choice([1, 1, 2, 50])


def _set_of_sets(rng: Random) -> str:
    def made(depth: int) -> str:
        if depth == 0:
            return rng.choice(["1", "x", r"\emptyset", r"\infty", "(0,1)", r"\mathbb{R}", "1/2", r"\{\}"])
        inner = ", ".join(made(depth - 1) for _ in range(rng.randint(1, 4)))
        opening, closing = rng.choice([(r"\{", r"\}"), (r"\{", r"\}"), ("(", ")"), ("[", "]"), ("[", ")")])
        return f"{opening}{inner}{closing}"

    joins = [r" \cup ", r" \cap ", r" \setminus ", r" \times ", ", ", r" \in "]
    parts = [made(rng.randint(1, 4)) for _ in range(rng.choice([1, 2, 5, 60]))]
    return rng.choice(joins).join(parts)


def _long_list(rng: Random) -> str:
    item = rng.choice(["x", "{n}", "x+{n}", r"\sqrt{{{n}}}", r"\sin {n}", "[{n},{n})", r"x^{{{n}}}"])
    joint = rng.choice(
        [",", ", ", r" \cup ", "+", r" \text{ or } ", "<", r"\pm ", " ", "*", "/", "^", ":", ";"]
    )
    return joint.join(item.format(n=number) for number in range(rng.choice([20, 300, 1_400])))


def _number(rng: Random) -> str:
    digits = _digits(rng, rng.choice([20, 400, 4_000, 100_000]))
    return rng.choice(
        [digits, f"-{digits}", f"0.{digits}", f"{digits}/{digits[::-1]}", f"1e{digits[:12]}",
         f"1e-{digits[:12]}",
         f"{digits}!", f"{digits}_{{36}}", f"0.({digits})", rf"\sqrt{{{digits}}}", f"{digits}%",
         f"1.{digits}...",
         f"{digits} \\text{{ cm}}", rf"10^{{{digits}}}", rf"\sqrt[{digits}]{{2}}", f"{digits}:{digits}",
         rf"{digits} \pmod{{{digits}}}", rf"\sin({digits})", rf"\lfloor {digits}\pi \rfloor"]
    )  # fmt: skip


PIECES = [
    *"0123456789xyzeinkfC+-*/^_=<>(){}[]|,;:!%'&#$.~ ", "\\", r"\frac", r"\sqrt", r"\pi", r"\le", r"\in",
    r"\cup",
    r"\text{or}", r"\text{cm}", r"\begin{cases}", r"\end{cases}", r"\\", r"\sum_{k=1}^{", r"\prod",
    r"\log_", r"\sin",
    r"\binom", r"\pmod", r"\mathbb{R}", r"\mid", r"\{", r"\}", r"\left(", r"\right)", r"\pm", r"\infty",
    r"^\circ",
    r"\overline{", r"\dot", r"\ldots", r"\equiv", r"\lfloor", r"\rfloor", r"\emptyset", r"\setminus", "{2}",
    "10^", " and ",
]  # fmt: skip
"""What answers are made of."""


def _soup(rng: Random) -> str:
    return "".join(rng.choices(PIECES, k=rng.randint(1, rng.choice([12, 60, 400]))))


def _unicode(rng: Random) -> str:
    return "".join(
        chr(rng.choice([rng.randrange(0x250), rng.randrange(0x11_0000)])) for _ in range(rng.randint(1, 40))
    )


def _expansion(rng: Random) -> str:
    names = "".join(rng.sample("xyzwabcdn", rng.randint(1, 6)))
    power = rng.choice([3, 40, 10_000, 10**9])
    inside = rng.choice(["+", "-"]).join(names)
    return rng.choice(
        [f"({inside}+1)^{{{power}}}", f"({inside})^{{{power}}}({inside}-1)^{{{power}}}",
         rf"\sin^{{{power}}}({inside})",
         rf"\sqrt{{({inside})^{{{power}}}}}", rf"\sum_{{k=1}}^{{{power}}} ({inside})^k",
         rf"e^{{({inside})^{{{power}}}}}",
         rf"\log_{{{power}}}({inside})", rf"\frac{{({inside})^{{{power}}}}}{{({inside})^{{{power}}}-1}}",
         rf"\tan(10^{{{power}}})", rf"\int_0^{{{power}}} {names[0]}^{{{power}}} d{names[0]}",
         rf"\lim_{{n \to \infty}} (1+\frac{{1}}{{n}})^{{{power}n}}", rf"{names[0]}={inside}^{{{power}}}"]
    )  # fmt: skip


def _spaces(rng: Random) -> str:
    space = rng.choice([" ", "\n", "\t", "\u00a0", "\u202f", "\u3000", "~", r"\ ", r"\quad "])
    run = space * rng.choice([50, 400, 5_000])
    return rng.choice(
        ["{0}", "1{0}", "{0}1", "1{0}2", "1 /{0}x", "-{0}x", "answer{0}:{0}x", "$ {0} x", "1{0}e"]
    ).format(run)


def _json(rng: Random) -> str:
    depth, digits = rng.choice([10, 900, 100_000]), _digits(rng, rng.choice([10, 50_000]))
    return rng.choice(
        ["[" * depth, "[" * depth + "]" * depth, '{"a":' * depth, '{"a": ' + digits + "}",
         '{"a": 1e' + digits[:9] + "}",
         r'{"a": "\ud800"}', '{"a": NaN}', '{"a": 1, "a": 2}', '{"__class__": "x"}', "{" * depth,
         '[{"a": 1}]' * 300,
         '{"a": ' + "[1," * (depth // 2) + "1" + "]" * (depth // 2) + "}", "```json\n" * depth,
         '"' + "\\" * depth,
         "```json\n{}\n```" * 50, '{"\\u0000": -0.0}']
    )  # fmt: skip


def _prose(rng: Random) -> str:
    """Whole responses whose words look like a statement of the answer again and again."""
    line = rng.choice(
        ["The answer is ", "answer: ", "#### ", "final answer is: answer is = ", "correct option is ",
         "**Answer**: A ",
         "```\n", "<answer>", "</think>", "1 2 3 / 4 ", "A or B and C ", "$$", r"\[", "* ", "1,234,", "-\n",
         ". ", "'"]
    )  # fmt: skip
    return line * rng.choice([3, 200, 4_000])


KINDS: dict[str, Callable[[Random], str]] = {
    "towers": _tower, "factorials": _factorial, "matrices": _matrix, "megabytes": _megabyte,
    "braces": _braces,
    "nesting": _nested, "boxes": _boxes, "control characters": _control, "surrogates": _surrogate,
    "right to left": _direction, "look-alikes": _look_alike, "code": _code, "macros": _macro,
    "sets of sets": _set_of_sets, "lists": _long_list, "numbers": _number, "soup": _soup, "unicode": _unicode,
    "expansions": _expansion, "spaces": _spaces, "json": _json, "prose": _prose,
}  # fmt: skip
"""How the answers of a kind are made."""
WHOLE_RESPONSES = ("boxes", "prose", "json")
"""Kinds that are whole responses, in no box."""
