"""The forms that an answer may have. `read` makes them; `compare` compares them."""

from dataclasses import dataclass
from fractions import Fraction

from actors.answers.nodes import Node, as_text
from actors.answers.units import Unit


@dataclass(frozen=True)
class Quantity:
    """One value: a number or an expression, with what was written around it."""

    node: Node
    unit: Unit | None = None
    counted: str | None = None
    """What is counted: `apple` in `20 apples`."""
    name: str | None = None
    """The unknown: `x` in `x = 5`."""
    places: int | None = None
    """Digits after the point, of a plain decimal."""

    def __str__(self) -> str:
        what = "the number" if self.node.op == "num" else "the expression"
        unit = f" {self.unit.name or '°'}" if self.unit else f" {self.counted}" if self.counted else ""
        return f"{what} {as_text(self.node)}{unit}" + (f", named {self.name}" if self.name else "")


@dataclass(frozen=True)
class Several:
    """Several readings: `list` and `set` have no order, `tuple` and `sequence` (with dots) have one."""

    kind: str
    items: tuple["Reading", ...]

    def __str__(self) -> str:
        shown_items = ", ".join(str(item) for item in self.items[:4])
        return f"a {self.kind} of {len(self.items)} ({shown_items}{', ...' if len(self.items) > 4 else ''})"


@dataclass(frozen=True)
class Part:
    """A piece of the real line; a point has equal ends that belong to it. Infinite ends are the node `oo`."""

    low: Node
    low_in: bool
    high: Node
    high_in: bool

    def __str__(self) -> str:
        opening, closing = "[" if self.low_in else "(", "]" if self.high_in else ")"
        return f"{opening}{as_text(self.low)}, {as_text(self.high)}{closing}"


@dataclass(frozen=True)
class Region:
    """A set of real numbers, as pieces in ascending order that do not touch."""

    parts: tuple[Part, ...]
    name: str | None = None

    def __str__(self) -> str:
        return "the set " + " ∪ ".join(str(part) for part in self.parts) if self.parts else "the empty set"


@dataclass(frozen=True)
class Relation:
    """`left sign right`, where the sign is one of = ≠ < ≤; > and ≥ are turned round."""

    sign: str
    left: Node
    right: Node

    def __str__(self) -> str:
        return f"the relation {as_text(self.left)} {self.sign} {as_text(self.right)}"


@dataclass(frozen=True)
class Function:
    """`f(x) = body`; the parameters are bound."""

    name: str
    parameters: tuple[str, ...]
    body: Node

    def __str__(self) -> str:
        return f"the function {self.name}({', '.join(self.parameters)}) = {as_text(self.body)}"


@dataclass(frozen=True)
class Congruence:
    """`name ≡ residue (mod modulus)`; the name may be left out."""

    name: str | None
    residue: Node
    modulus: Node

    def __str__(self) -> str:
        return f"the class of {as_text(self.residue)} modulo {as_text(self.modulus)}"


@dataclass(frozen=True)
class Based:
    """Digits in a base."""

    digits: str
    base: int
    value: Fraction

    def __str__(self) -> str:
        return f"{self.digits} in base {self.base}"


@dataclass(frozen=True)
class Ratio:
    """`a:b:c`; two numbers may also be a time of day."""

    terms: tuple[Node, ...]

    def __str__(self) -> str:
        return "the ratio " + " : ".join(as_text(term) for term in self.terms)


@dataclass(frozen=True)
class TimeOfDay:
    """A time of day, in minutes after midnight."""

    minutes: int
    half_known: bool
    """Whether AM or PM, or a 24-hour clock, tells the half of the day."""

    def __str__(self) -> str:
        return f"the time {self.minutes // 60}:{self.minutes % 60:02d}"


@dataclass(frozen=True)
class Matrix:
    """Entries, row by row."""

    columns: int
    entries: tuple[Node, ...]

    def __str__(self) -> str:
        return f"a matrix of {len(self.entries) // self.columns} x {self.columns}"


@dataclass(frozen=True)
class Cases:
    """A piecewise value: pairs of a value and the condition under which it holds."""

    rows: tuple[tuple["Reading", "Reading"], ...]

    def __str__(self) -> str:
        return f"a value in {len(self.rows)} cases"


@dataclass(frozen=True)
class ChoiceLetter:
    """A letter of multiple choice, and what may stand behind it."""

    letter: str
    rest: "Reading | None" = None

    def __str__(self) -> str:
        return f"the choice {self.letter}"


@dataclass(frozen=True)
class Words:
    """Words; `text` is their meaning."""

    text: str

    def __str__(self) -> str:
        return f"the words {self.text!r}"


@dataclass(frozen=True)
class Digits:
    """An integer as it is written, however long."""

    text: str

    def __str__(self) -> str:
        return (
            f"the integer {self.text}" if len(self.text) < 100 else f"an integer of {len(self.text)} digits"
        )


@dataclass(frozen=True)
class Void:
    """A text that was not wholly read, and what of it was not."""

    reason: str

    def __str__(self) -> str:
        return f"not read: {self.reason}"


Reading = (
    Quantity | Several | Region | Relation | Function | Congruence | Based | Ratio | TimeOfDay | Matrix
    | Cases | ChoiceLetter | Words | Digits | Void
)  # fmt: skip
