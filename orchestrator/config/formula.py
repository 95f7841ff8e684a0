"""Formulas that a sweep's file may hold: what to maximise, and conditions on a point. Arithmetic and comparisons, no code."""

import ast
import math
from collections.abc import Mapping
from typing import Any

from simpleeval import InvalidExpression, SimpleEval

FUNCTIONS = {"min": min, "max": max, "abs": abs, "sqrt": math.sqrt, "log": math.log}


class NotDefined(ValueError):
    """The formula has no value for these numbers: a division by zero, a logarithm of nothing."""


class Formula:
    """An expression over names.

    Raises:
        ValueError: It is no expression.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        try:
            self.tree = SimpleEval.parse(text)
            self.names = {
                node.id for node in ast.walk(ast.parse(text, mode="eval")) if isinstance(node, ast.Name)
            } - set(FUNCTIONS)
        except (InvalidExpression, SyntaxError) as error:
            raise ValueError(f"{text!r} is no formula: {error}") from error

    def value(self, names: Mapping[str, Any]) -> Any:
        """The expression's value.

        Raises:
            NotDefined: It has no value for these numbers.
            ValueError: It uses a name that is not among `names`, or cannot be computed.
        """
        try:
            return SimpleEval(names=dict(names), functions=FUNCTIONS).eval(self.text, self.tree)
        except (ArithmeticError, ValueError) as error:
            raise NotDefined(f"{self.text!r} is not defined: {error}") from error
        except (InvalidExpression, TypeError, AttributeError) as error:
            known = ", ".join(sorted(names))
            raise ValueError(
                f"{self.text!r} cannot be computed: {error}. Names that it may use: {known}"
            ) from error

    def number(self, names: Mapping[str, Any]) -> float:
        """The same as a number; a truth value is none."""
        value = self.value(names)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{self.text!r} gives {value!r}, not a number")
        return float(value)
