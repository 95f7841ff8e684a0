"""The rules of the house that no linter has: sizes, names, docstrings, and which files lie where."""

import ast
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("orchestrator", "actors", "dashboards")

LONGEST_FILE = 400
LONGEST_FUNCTION = 60
LONGEST_CLASS = 250
WIDEST_LINE = 110
LONGER_FILES = {
    "orchestrator/cli.py": (470, "most of it is the table of commands and their arguments"),
}
"""Files that may be longer: the limit, and the reason."""

FLAT_FILES = {
    "__init__.py",
    "cli.py",
    "errors.py",
    "measures.py",
    "py.typed",
    "shown_text.py",
    "terminal.py",
}
"""The only files of orchestrator/ that lie outside its folders."""

REPEATED_NAMES = {
    "show": "prints a command's result",
    "prepare": "checks everything that a command needs before it starts",
}
"""Public names that several modules may define, and their one meaning."""

OWN_OUTPUT = {
    "orchestrator/terminal.py": "holds both ways out",
    "orchestrator/jobs/probe.py": "prints a line of JSON for a program",
}
"""Modules that may print by themselves, and why."""

Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef

modules = pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=str(path.relative_to(ROOT)))
        for package in PACKAGES
        for path in sorted((ROOT / package).rglob("*.py"))
    ],
)


@cache
def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def length(node: Definition) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def is_overload(node: Definition) -> bool:
    """Only the implementation of an overloaded function has a docstring."""
    return any(ast.unparse(decorator).endswith("overload") for decorator in node.decorator_list)


def public_names(module: ast.Module) -> Iterator[str]:
    """Functions, classes and variables that the module itself defines at its top level."""
    for node in module.body:
        targets: list[ast.expr] = []
        if isinstance(node, Definition):
            names = [node.name]
        else:
            targets = node.targets if isinstance(node, ast.Assign) else targets
            targets = [node.target] if isinstance(node, ast.AnnAssign) else targets
            names = [target.id for target in targets if isinstance(target, ast.Name)]
        yield from (name for name in names if not name.startswith("_"))


@modules
def test_files_functions_classes_and_lines_are_short(path):
    lines = path.read_text(encoding="utf-8").splitlines()
    allowed, _ = LONGER_FILES.get(str(path.relative_to(ROOT)), (LONGEST_FILE, ""))
    assert len(lines) <= allowed
    wide = [number for number, line in enumerate(lines, 1) if len(line) > WIDEST_LINE]
    assert not wide, f"lines of more than {WIDEST_LINE} columns"
    definitions = [node for node in ast.walk(tree_of(path)) if isinstance(node, Definition)]
    long = {
        node.name: length(node)
        for node in definitions
        if length(node) > (LONGEST_CLASS if isinstance(node, ast.ClassDef) else LONGEST_FUNCTION)
    }
    assert not long, f"at most {LONGEST_FUNCTION} lines a function and {LONGEST_CLASS} a class"


@modules
def test_modules_and_what_they_offer_have_docstrings(path):
    module = tree_of(path)
    assert ast.get_docstring(module), "a module says what it is for"
    without = [
        node.name
        for node in module.body
        if isinstance(node, Definition)
        and not node.name.startswith("_")
        and not is_overload(node)
        and not ast.get_docstring(node)
    ]
    assert not without


@modules
def test_all_output_goes_through_terminal(path):
    """There, control sequences and secrets of a text are taken out."""
    if str(path.relative_to(ROOT)) in OWN_OUTPUT:
        return
    calls = [node.func for node in ast.walk(tree_of(path)) if isinstance(node, ast.Call)]
    names = {call.id for call in calls if isinstance(call, ast.Name)}
    assert not names & {"print", "Console"}, "use say_line or SafeConsole"


def test_orchestrator_has_a_folder_for_each_subject():
    flat = {path.name for path in (ROOT / "orchestrator").iterdir() if path.is_file()}
    assert flat == FLAT_FILES


def test_a_public_name_has_one_meaning():
    homes = defaultdict(set)
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*.py"):
            for name in public_names(tree_of(path)):
                homes[name].add(str(path.relative_to(ROOT)))
    repeated = {name: sorted(files) for name, files in homes.items() if len(files) > 1}
    assert {name: files for name, files in repeated.items() if name not in REPEATED_NAMES} == {}
    assert REPEATED_NAMES.keys() <= repeated.keys(), "a name that is not repeated needs no exception"
