"""Imports math-verify so that it evaluates no answer as Python, and swallows no lack of memory.

In: the source of math-verify and of its LaTeX reader. Out: the modules, in which functions of this module
replace sympy's readers of text, which call `eval`, and a `MemoryError` passes each `except Exception`.
"""

import ast
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import CodeType, ModuleType
from typing import Any

_CHANGED = ("math_verify.parser", "math_verify.grader", "latex2sympy2_extended.latex2sympy2")
_READERS = {"parse_expr": "sympy_arithmetic", "Number": "sympy_number"}
"""Functions of sympy that evaluate their text, and what is called in their place."""


def import_math_verify() -> ModuleType:
    """math-verify with the changes, where this process has not imported it before."""
    if "math_verify" not in sys.modules:
        sys.meta_path.insert(0, _Finder())
    return importlib.import_module("math_verify")


def sympy_number(text: str) -> Any:
    """What `sympy.Number` makes of the text of a number."""
    import sympy

    return sympy.Float(text) if "." in text else sympy.Integer(int(text))


def sympy_arithmetic(text: str, evaluate: bool = True) -> Any:
    """What `sympy.parse_expr` makes of numbers, brackets, `+ - * / **`, unevaluated.

    Raises:
        ValueError: The text is something else.
    """
    from sympy.parsing.sympy_parser import evaluateFalse, standard_transformations, stringify_expr

    code = stringify_expr(text, {}, {}, standard_transformations)
    return _value(evaluateFalse(code).body)


def _value(tree: ast.AST) -> Any:
    """The value of a tree whose calls are to a few classes of sympy."""
    import sympy

    match tree:
        case ast.Call(func=ast.Name(id="Integer" | "Float" | "Add" | "Mul" | "Pow" as name)):
            options = {str(option.arg): _value(option.value) for option in tree.keywords}
            return getattr(sympy, name)(*map(_value, tree.args), **options)
        case ast.UnaryOp(op=ast.USub()):
            return -_value(tree.operand)
        case ast.UnaryOp(op=ast.UAdd()):
            return +_value(tree.operand)
        case ast.Constant(value=bool() | int() | str()):
            return tree.value
    raise ValueError(f"{ast.dump(tree)[:100]} is no arithmetic")


class _Finder:
    """Finds the modules that are changed; all others are left to the usual finders."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None, target: Any = None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path) if name in _CHANGED else None
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    """Loads a changed module, always from its source."""

    def get_code(self, fullname: str) -> CodeType:
        tree = _Change().visit(ast.parse(self.get_data(self.path)))
        tree.body[:0] = ast.parse(f"from {__name__} import {', '.join(_READERS.values())}").body
        return compile(ast.fix_missing_locations(tree), self.path, "exec", dont_inherit=True)


class _Change(ast.NodeTransformer):
    def visit_Call(self, node: ast.Call) -> ast.AST:
        self.generic_visit(node)
        match node.func:
            case ast.Name(id=name) | ast.Attribute(value=ast.Name(id="sympy"), attr=name) if name in _READERS:
                node.func = ast.Name(_READERS[name], ast.Load())
        return node

    def visit_Try(self, node: ast.Try) -> ast.AST:
        self.generic_visit(node)
        passes = ast.ExceptHandler(ast.Name("MemoryError", ast.Load()), None, [ast.Raise(None, None)])
        node.handlers = [passes, *node.handlers] if node.handlers else []
        return node
