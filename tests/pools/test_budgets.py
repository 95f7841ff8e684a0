"""The deaths that a pool bears, and what gives them back."""

import pytest

from orchestrator.errors import PoolError
from orchestrator.pools.budgets import DeathBudget


def death(number):
    return OSError(f"cause {number}")


def test_a_budget_bears_its_limit_and_then_names_the_first_cause():
    budget = DeathBudget("engines", limit=3)
    for number in range(3):
        budget.spend(death(number))
    with pytest.raises(PoolError, match=r"engines died 4 times .*max_deaths=3.*first cause: cause 0") as it:
        budget.spend(death(3))
    assert str(it.value.__cause__) == "cause 0"


def test_work_gives_deaths_back_so_a_run_may_be_of_any_length():
    budget = DeathBudget("engines", limit=2, work_per_death=10)
    for number in range(100):
        budget.spend(death(number))
        for _ in range(10):
            budget.work()


def test_the_first_cause_is_the_oldest_that_is_not_given_back():
    budget = DeathBudget("engines", limit=2, work_per_death=10)
    budget.spend(death(0))
    budget.spend(death(1))
    budget.work(10)
    budget.spend(death(2))
    with pytest.raises(PoolError, match="first cause: cause 1"):
        budget.spend(death(3))


def test_work_before_a_death_is_no_credit():
    """Else a run that has gone well for long would never end in a broken environment."""
    budget = DeathBudget("engines", limit=1, work_per_death=10)
    budget.work(1000)
    budget.spend(death(0))
    budget.work(9)
    with pytest.raises(PoolError):
        budget.spend(death(1))
