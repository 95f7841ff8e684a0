"""The formulas in a sweep's file."""

import pytest

from orchestrator.config.formula import Formula


@pytest.mark.parametrize(
    "text", ["__import__('os').getcwd()", "().__class__", "open('/etc/passwd')", "[x for x in (1, 2)]"]
)
def test_a_formula_runs_no_code(text):
    with pytest.raises(ValueError, match=r"cannot be computed|is not a formula"):
        Formula(text).value({"accuracy": 0.5})
