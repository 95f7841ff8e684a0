"""The formulas in a sweep's file, for objective and conditions: arithmetic and comparisons, no code."""

import ast
import math
from collections.abc import Mapping
from typing import Any

from simpleeval import InvalidExpression, SimpleEval

FUNCTIONS = {"min": min, "max": max, "abs": abs, "sqrt": math.sqrt, "log": math.log}


class NotDefined(ValueError):
    """The formula has no value for these numbers, such as a division by zero or a logarithm of zero."""


class Formula:
    """An expression over names.

    Attributes:
        names: The names that it uses, functions left out.

    Raises:
        ValueError: The text is not an expression.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        try:
            self.tree = SimpleEval.parse(text)
            self.names = {
                node.id for node in ast.walk(ast.parse(text, mode="eval")) if isinstance(node, ast.Name)
            } - set(FUNCTIONS)
        except (InvalidExpression, SyntaxError) as error:
            raise ValueError(f"{text!r} is not a formula: {error}") from error

    def value(self, names: Mapping[str, Any]) -> Any:
        """The expression's value.

        Raises:
            NotDefined: The expression has no value for these numbers.
            ValueError: The expression uses a name that is not in `names`, or cannot be computed.
        """
        try:
            return SimpleEval(names=dict(names), functions=FUNCTIONS).eval(self.text, self.tree)
        except (ArithmeticError, ValueError) as error:
            raise NotDefined(f"{self.text!r} is not defined: {error}") from error
        except (InvalidExpression, TypeError, AttributeError) as error:
            known = ", ".join(sorted(names))
            raise ValueError(f"{self.text!r} cannot be computed: {error}. Known names: {known}") from error

    def number(self, names: Mapping[str, Any]) -> float:
        """The expression's value as a number.

        Raises:
            NotDefined: As `value`.
            ValueError: As `value`, and where the value is no number; a truth value is none.
        """
        value = self.value(names)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{self.text!r} gives {value!r}, not a number")
        return float(value)
