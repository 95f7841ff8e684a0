"""The grammar of expressions: tokens in, one `Node` out, or `Unread` with what could not be read."""

from collections.abc import Sequence
from fractions import Fraction

from actors.answers.atoms import negative
from actors.answers.functions import Functions
from actors.answers.nodes import Node, num
from actors.answers.tokens import MOST_LEVELS, Token, Unread

_MULTIPLY = ("*", "times", "cdot")
_DIVIDE = ("/", "div")


class Grammar(Functions):
    """Reads one expression by recursive descent; all tokens belong to it."""

    def __init__(self, tokens: Sequence[Token]) -> None:
        super().__init__(tokens)
        self._depth = 0

    def whole(self) -> Node:
        """The expression that all tokens make.

        Raises:
            Unread: A part is not read.
        """
        node = self.expression()
        if sign := self.take("over", "choose"):
            node = Node("div" if sign == "over" else "binom", (node, self.expression()))
        if self.at < len(self.tokens):
            raise Unread(f"{self.rest()!r} after an expression")
        return node

    def expression(self) -> Node:
        """A sum of products."""
        self._depth += 1
        if self._depth > MOST_LEVELS:
            raise Unread(f"more than {MOST_LEVELS} levels")
        terms = [self._term()]
        while self.peek() in ("+", "-", "pm", "mp"):
            terms.append(self._term())
        self._depth -= 1
        return terms[0] if len(terms) == 1 else Node("add", tuple(terms))

    def _term(self) -> Node:
        sign = self.take("+", "-", "pm", "mp")
        if sign is None:
            return self.product()
        node = self._term() if self.peek() in ("+", "-") else self.product()
        return {"+": node, "-": negative(node)}.get(sign) or Node(sign, (node,))

    def product(self) -> Node:
        """Factors, multiplied and divided."""
        node = self.mixed() or self._signed_power()
        while True:
            if self.take(*_MULTIPLY):
                node = Node("mul", (node, self.mixed() or self._signed_power()))
            elif self.take(*_DIVIDE):
                node = Node("div", (node, self._signed_power()))
            elif self.starts_factor():
                self._refuse_joined_numbers()
                node = Node("mul", (node, self.power()))
            else:
                return node

    def _refuse_joined_numbers(self) -> None:
        """Two numbers side by side are no product, and neither is a number right behind a letter."""
        before, here = self.tokens[self.at - 1], self.tokens[self.at]
        if (
            before.kind == "number"
            and before.text[0] == "0"
            and before.text.isdecimal()
            and len(before.text) > 1
        ):
            raise Unread(f"{here.text} right after {before.text}")
        if here.kind != "number":
            return
        if before.kind == "number" or before.text in ("circ", "%"):
            raise Unread(f"the numbers {before.text} and {here.text} side by side")
        if before.kind == "letter" and not here.space:
            raise Unread(f"a number right after {before.text}")

    def mixed(self) -> Node | None:
        r"""A mixed number: an integer, then a fraction of two integers that is less than 1."""
        start = self.at
        if (whole := self._plain_integer()) is not None:
            space = self.at < len(self.tokens) and self.tokens[self.at].space
            is_frac = self.take("frac") is not None
            above = self._integer_argument() if is_frac else (self._plain_integer() if space else None)
            numerator = self.tokens[self.at - 1].text
            if above is not None and (is_frac or self.take("/")):
                below = self._integer_argument() if is_frac else self._plain_integer()
                if below and above < below and not numerator.startswith("0") and not self._is_raised():
                    return self._postfixed(num(whole + Fraction(above, below)))
                raise Unread(f"the number {whole} beside the fraction {above}/{below}")
        self.at = start
        return None

    def _is_raised(self) -> bool:
        after = self.tokens[self.at + 1].text if self.at + 1 < len(self.tokens) else ""
        return self.peek() == "!" or (self.peek() == "^" and after != "circ")

    def _plain_integer(self) -> int | None:
        token = self.here()
        if token is None or token.places != 0:
            return None
        self.at += 1
        return int(token.value or 0)

    def _integer_argument(self) -> int | None:
        braces = self.take("{")
        value = self._plain_integer()
        return None if braces and not self.take("}") else value

    def _signed_power(self) -> Node:
        sign = self.take("+", "-")
        if sign is None:
            return self.power()
        return negative(self._signed_power()) if sign == "-" else self._signed_power()

    def power(self) -> Node:
        """An atom with what is raised or put behind it."""
        return self._postfixed(self.atom())

    def _postfixed(self, node: Node) -> Node:
        raised = False
        while (sign := self.take("^", "!", "%")) is not None:
            if sign == "!":
                node = Node("fact", (node,))
            elif sign == "%":
                node = Node("percent", (node,))
            elif raised:
                raise Unread("a power of a power without brackets")
            else:
                raised = True
                node = Node("degree", (node,)) if self.take("circ") else Node("pow", (node, self.script()))
        return node
