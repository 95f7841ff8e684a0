"""The smallest parts of an expression: numbers, variables, brackets, commands and functions."""

from collections.abc import Callable, Sequence

from actors.answers.cursor import Cursor
from actors.answers.nodes import Node, as_variable, num, sym, walk
from actors.answers.normalise import FUNCTION_NAMES
from actors.answers.numerals import word_set
from actors.answers.tokens import Token, Unread

GREEK = word_set(
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau upsilon phi chi "
    "psi omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega ell hbar"
)
_PI, _INFINITY = Node("const", ("pi",)), Node("const", ("oo",))
CLOSING = {"(": ")", "[": "]", "{": "}", "lvert": "rvert", "lfloor": "rfloor", "lceil": "rceil"}
_SHAPES = word_set("triangle angle overline overrightarrow overleftrightarrow odot widehat vec hat bar")
_MATRICES = ("matrix", "pmatrix", "bmatrix", "Bmatrix", "array", "smallmatrix")


class Atoms(Cursor):
    """Reads the parts; a subclass reads the expressions that are made of them."""

    def __init__(self, tokens: Sequence[Token]) -> None:
        super().__init__(tokens)
        self._bars = 0

    def expression(self) -> Node:
        """A sum of products."""
        raise NotImplementedError

    def product(self) -> Node:
        """Factors, multiplied and divided."""
        raise NotImplementedError

    def power(self) -> Node:
        """An atom with what is raised or put behind it."""
        raise NotImplementedError

    def function(self, name: str) -> Node:
        """A function with its argument."""
        raise NotImplementedError

    def mixed(self) -> Node | None:
        """A mixed number, if one is next."""
        raise NotImplementedError

    def starts_factor(self) -> bool:
        """Whether a factor is next, as after a number in `2x`."""
        if self.at >= len(self.tokens):
            return False
        token = self.tokens[self.at]
        if self.at and self.tokens[self.at - 1].text == "ldots":
            return False
        if token.kind in ("number", "letter"):
            return True
        if token.kind == "text":
            return False
        if token.text == "|":
            return not self._bars
        return (
            (token.text in _ATOMS and token.text != "ldots")
            or token.text in FUNCTION_NAMES
            or token.text in GREEK
            or token.text in _SHAPES
        )

    def script(self) -> Node:
        """What is raised or lowered: a group, a signed number, or one atom."""
        sign = self.take("-", "+")
        node = self.atom()
        return negative(node) if sign == "-" else node

    def atom(self) -> Node:
        """One number, variable, group or command with its arguments."""
        if self.at >= len(self.tokens):
            raise Unread("nothing where a number or a variable is expected")
        token = self.next()
        if token.kind == "number":
            return num(token.value if token.value is not None else 0)
        if token.kind == "letter":
            return self._letter(token.text)
        if token.kind == "text":
            raise Unread(f"the words {token.text!r}")
        name = token.text
        if name in GREEK:
            return self._letter(f"\\{name}")
        if name in FUNCTION_NAMES:
            return self.function(name)
        if name in _SHAPES:
            return self._shape(name)
        handler = _ATOMS.get(name)
        if handler is None:
            raise Unread(f"{name!r}")
        return handler(self, name)

    def _letter(self, name: str) -> Node:
        if name == "e" and self.peek() != "_":
            return Node("const", ("e",))
        if name == "i" and self.peek() != "_":
            return Node("const", ("i",))
        if self.take("_"):
            name = f"{name}_{self._subscript()}"
        while self.take("'"):
            name += "'"
        if name in ("f", "g", "h") and self.peek() == "(":
            self.at += 1
            args = [self.expression()]
            while self.take(","):
                args.append(self.expression())
            self.expect(")")
            return Node("call", (name, *args))
        if name == "C" and self.peek() == "(":
            return self._combinations(name)
        return sym(name)

    def _combinations(self, name: str) -> Node:
        start = self.at
        self.at += 1
        above = self.expression()
        if self.take(","):
            below = self.expression()
            self.expect(")")
            return Node("binom", (above, below))
        self.at = start
        return sym(name)

    def _subscript(self) -> str:
        if not self.take("{"):
            return self.next().text
        parts, depth = [], 0
        while depth or self.peek() != "}":
            token = self.next()
            depth += {"{": 1, "}": -1}.get(token.text, 0)
            parts.append(token.text)
        self.at += 1
        return "".join(parts)

    def _bracket(self, opening: str) -> Node:
        bars, self._bars = self._bars, 0
        node = self.expression()
        if opening == "{" and self.peek() in ("over", "choose"):
            node = Node("div" if self.next().text == "over" else "binom", (node, self.expression()))
        self.expect(CLOSING[opening])
        self._bars = bars
        return node

    def _between(self, opening: str) -> Node:
        node = self._bracket(opening)
        return Node({"lvert": "abs", "lfloor": "floor", "lceil": "ceil"}[opening], (node,))

    def _bar(self, _: str) -> Node:
        self._bars += 1
        node = self.expression()
        self.expect("|")
        self._bars -= 1
        return Node("abs", (node,))

    def _frac(self, name: str) -> Node:
        above, below = self.atom(), self.atom()
        return Node("div" if name == "frac" else "binom", (above, below))

    def _root(self, name: str) -> Node:
        degree = num(3 if name == "cbrt" else 2)
        if self.take("["):
            degree = self.expression()
            self.expect("]")
        return Node("root", (degree, self.atom()))

    def _named(self, name: str) -> Node:
        """`abs(x)`, `floor(x)` and `ceil(x)` in plain text."""
        self.expect("(")
        node = self.expression()
        self.expect(")")
        return Node(name, (node,))

    def _shape(self, kind: str) -> Node:
        """A figure named by its points: an angle, a triangle, a segment."""
        braces = self.take("{") is not None
        letters = []
        while self.at < len(self.tokens) and self.tokens[self.at].kind in ("letter", "text", "number"):
            token = self.next()
            letters.append(f"{token.text}_{self._subscript()}" if self.take("_") else token.text)
        if braces:
            self.expect("}")
        if not letters:
            raise Unread(f"{kind!r} without points")
        if kind in ("angle", "overline"):
            letters = min(letters, letters[::-1])  # the angle ABC is the angle CBA
        return sym(f"{kind} {''.join(letters)}")

    def _sum_sign(self, name: str) -> Node:
        """A sum or a product from one integer to another."""
        self.expect("_")
        self.expect("{")
        variable = self.next()
        self.expect("=")
        low = self.expression()
        self.expect("}")
        self.expect("^")
        high = self.script()
        body = self.product()
        if any(part.op in ("sum", "prod") for node in (low, high, body) for part in walk(node)):
            raise Unread("a sum within a sum")  # it would have as many terms as the product of their numbers
        if variable.text == "i":
            body = as_variable(body, "i")
        return Node(name, (variable.text, low, high, body))

    def _matrix(self, _: str) -> Node:
        environment = self.next().text
        if environment not in _MATRICES:
            raise Unread(f"the environment {environment!r}")
        if environment == "array" and self.take("{"):
            while self.next().text != "}":
                pass
        rows: list[tuple[Node, ...]] = [()]
        while self.peek() != "end":
            if self.take("\\\\"):
                rows.append(())
            elif self.take("&") is None:
                rows[-1] += (self.expression(),)
        self.next()
        if self.next().text != environment:
            raise Unread("a matrix whose end has another name")
        rows = [row for row in rows if row]
        if not rows or len({len(row) for row in rows}) != 1:
            raise Unread("a matrix whose rows differ in length")
        return Node("matrix", (len(rows[0]), *(entry for row in rows for entry in row)))


_ATOMS: dict[str, Callable[[Atoms, str], Node]] = {
    "(": Atoms._bracket, "[": Atoms._bracket, "{": Atoms._bracket, "|": Atoms._bar,
    "lvert": Atoms._between, "lfloor": Atoms._between, "lceil": Atoms._between,
    "frac": Atoms._frac, "binom": Atoms._frac, "sqrt": Atoms._root, "cbrt": Atoms._root,
    "pi": lambda _, name: _PI, "infty": lambda _, name: _INFINITY, "ldots": lambda _, name: sym("..."),
    "begin": Atoms._matrix,
    "abs": Atoms._named, "floor": Atoms._named, "ceil": Atoms._named,
    "sum": Atoms._sum_sign, "prod": Atoms._sum_sign,
}  # fmt: skip


def negative(node: Node) -> Node:
    """Its negative; that of a number is a number."""
    return num(-node.args[0]) if node.op == "num" else Node("neg", (node,))
