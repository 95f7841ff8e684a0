"""Functions and their arguments: `\\sin^2 x`, `\\log_2 8`, `\\gcd(a, b)`."""

from actors.answers.atoms import CLOSING, Atoms, negative
from actors.answers.nodes import Node, num
from actors.answers.normalise import FUNCTION_NAMES
from actors.answers.numerals import word_set
from actors.answers.tokens import Unread

_TRIGONOMETRIC = word_set("sin cos tan cot sec csc")
_NAMED_CALLS = ("gcd", "lcm", "max", "min")
_AFTER_AN_ARGUMENT = FUNCTION_NAMES | {"(", "|"}


class Functions(Atoms):
    """Reads the functions that an expression applies."""

    def function(self, name: str) -> Node:
        """A function with its base or power, and its argument with or without brackets."""
        base = None
        power = None
        while self.peek() in ("_", "^"):
            if self.next().text == "_":
                base = self.script()
            else:
                power = self.script()
        if self.peek() == "(" or (self.peek() == "{" and name in _NAMED_CALLS):
            args = self._call_arguments()
        else:
            args = [self._bare_argument(name)]
        if len(args) > 1 and name not in _NAMED_CALLS:
            raise Unread(f"{name!r} of {len(args)} arguments")
        if power == num(-1) and name in _TRIGONOMETRIC:
            name, power = f"arc{name}", None
        node = self._log(name, base, args[0]) if name in ("log", "lg", "ln") else Node("fn", (name, *args))
        return node if power is None else Node("pow", (node, power))

    def _log(self, name: str, base: Node | None, argument: Node) -> Node:
        if name == "ln" or (name == "log" and base is None):
            return Node("fn", ("ln" if name == "ln" else "log", argument))
        return Node("log", (base if base is not None else num(10), argument))

    def _call_arguments(self) -> list[Node]:
        closing = CLOSING[self.next().text]
        bars, self._bars = self._bars, 0
        args = [self.expression()]
        while self.take(","):
            args.append(self.expression())
        self.expect(closing)
        self._bars = bars
        return args

    def _is_exponential(self) -> bool:
        return [token.text for token in self.tokens[self.at : self.at + 2]] == ["e", "^"]

    def _bare_argument(self, name: str) -> Node:
        """The argument of a function without brackets: a product up to a sign or another function."""
        if self.take("-"):
            return negative(self._bare_argument(name))
        node = self.mixed() or self.power()
        while self.starts_factor() and self.peek() not in _AFTER_AN_ARGUMENT and not self._is_exponential():
            node = Node("mul", (node, self.power()))
        if (
            name in _TRIGONOMETRIC
            and self.peek() == "/"
            and any(part.args == ("pi",) for part in _flat(node))
        ):
            self.at += 1
            node = Node("div", (node, self.power()))
        return node


def _flat(node: Node) -> list[Node]:
    return [part for arg in node.args for part in _flat(arg)] if node.op == "mul" else [node]
