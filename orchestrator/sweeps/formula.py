"""Formulas that a sweep's file may hold: what to maximise, and conditions on a point. Arithmetic and comparisons, no code."""

import math
from collections.abc import Mapping
from typing import Any

from simpleeval import InvalidExpression, SimpleEval


class Formula:
    """An expression over names.

    Raises:
        ValueError: It is no expression.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        try:
            self.tree = SimpleEval.parse(text)
        except (InvalidExpression, SyntaxError) as error:
            raise ValueError(f"{text!r} is no formula: {error}") from error

    def value(self, names: Mapping[str, Any]) -> Any:
        """The expression's value.

        Raises:
            ValueError: It uses a name that is not among `names`, or cannot be computed.
        """
        evaluator = SimpleEval(names=dict(names), functions={"min": min, "max": max, "abs": abs, "sqrt": math.sqrt, "log": math.log})
        try:
            return evaluator.eval(self.text, self.tree)
        except (InvalidExpression, ArithmeticError, TypeError, ValueError, AttributeError) as error:
            known = ", ".join(sorted(names))
            raise ValueError(f"{self.text!r} cannot be computed: {error}. Names that it may use: {known}") from error

    def number(self, names: Mapping[str, Any]) -> float:
        """The same as a number; a truth value is none."""
        value = self.value(names)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(f"{self.text!r} gives {value!r}, not a number")
        return float(value)
