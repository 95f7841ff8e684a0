"""Problems made of several fields of a row: by a template or by a function of the user's own.

In: `problem_template` or `rows` of a source. Out: the text of a problem and perhaps its reference, or another
row. A template runs in Jinja's sandbox; a function is the user's code.
"""

import importlib
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from orchestrator.data.texts import Row
from orchestrator.errors import ConfigError, DataError

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
"""The names of options, in a template `letters`."""
_ANSWER = "answer"
"""The variable by which a template sets the reference."""


@dataclass(frozen=True)
class ProblemTemplate:
    """A Jinja template that makes a problem's text of a row's fields.

    It sees the fields by their names and, for those that are no names, in `row`. `shuffled(list)` is the list
    in an order that depends on `seed` and the row alone. A variable `answer` that it sets is the reference.

    Raises:
        ConfigError: From `check`: the template is none.
    """

    text: str
    seed: int = 0

    def check(self, key: str) -> None:
        """Refuse what is no template.

        Args:
            key: The setting, for the message.
        """
        import jinja2

        try:
            _ = self._template
        except jinja2.TemplateSyntaxError as error:
            raise ConfigError(
                f"{key}: is no Jinja template (line {error.lineno}: {error.message})"
            ) from error

    def render(self, fields: Mapping[str, Any], where: str) -> tuple[str, Any]:
        """The problem's text, and the value of the template's `answer`; None where it sets none.

        Args:
            fields: The row as JSON values.
            where: File and line, for messages.

        Raises:
            DataError: The template fails on this row.
        """

        def shuffled(values: Sequence[Any]) -> list[Any]:
            content = json.dumps([self.seed, fields], sort_keys=True, default=str)
            return random.Random(content).sample(list(values), len(values))

        names = {name: value for name, value in fields.items() if name.isidentifier()}
        try:
            module = self._template.make_module(
                names | {"row": fields, "shuffled": shuffled, "letters": LETTERS}
            )
        except Exception as error:  # a template is a program and may raise any error
            raise DataError(
                f"{where}: problem_template fails on it ({type(error).__name__}: {error}); its fields are "
                f"{', '.join(map(repr, list(fields)[:30]))}"
            ) from error
        return str(module), getattr(module, _ANSWER, None)

    @cached_property
    def _template(self) -> Any:
        from jinja2 import StrictUndefined
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        return ImmutableSandboxedEnvironment(undefined=StrictUndefined).from_string(self.text)


def rows_function(path: str, key: str) -> Callable[[Row, str], Row]:
    """The function at `package.module:function`, as one that takes a row and its place.

    Args:
        key: The setting, for the message.

    Raises:
        ConfigError: There is none. The function it returns raises DataError where the user's own fails.
    """
    module, _, name = path.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except Exception as error:  # a module is a program and may raise any error
        raise ConfigError(f"{key}: {path} cannot be imported ({type(error).__name__}: {error})") from error
    if not callable(function):
        raise ConfigError(f"{key}: {path} is {type(function).__name__}, no function")

    def row_of_function(row: Row, where: str) -> Row:
        try:
            made = function(dict(row))
        except Exception as error:  # it is the user's code
            raise DataError(f"{where}: {path} fails on it ({type(error).__name__}: {error})") from error
        if not isinstance(made, Mapping):
            raise DataError(f"{where}: {path} returned {type(made).__name__}, not a mapping of fields")
        return made

    return row_of_function
