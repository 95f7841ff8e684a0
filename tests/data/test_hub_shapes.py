"""Rows shaped like those of known sets of the hub, written anew, read with the settings of docs/tasks.md."""

import json
import re
from pathlib import Path

import pytest

from actors.verifiers.loading import loaded_verifier
from orchestrator.config.sources import SourceConfig
from orchestrator.config.texts import parse_yaml
from orchestrator.config.verifiers import verifier_text
from orchestrator.data.problems import ProblemSource
from orchestrator.messages.verdicts import Status

PAGE = Path(__file__).parents[2] / "docs" / "tasks.md"
OPTIONS = ["3", "5", "8", "13", "21", "34", "55", "89", "144", "233"]

SHAPES = {
    "GSM8K": (
        {
            "question": "Ann has 1,000 pens and buys 234. How many?",
            "answer": "She has 1000 + 234 = <<1000+234=1234>>1234 pens.\n#### 1,234",
        },
        "Ann has 1,000 pens and buys 234. How many?",
        "1,234",
        r"\boxed{1234}",
    ),
    "MATH-500": (
        {
            "problem": "What is half of $\\frac{1}{2}$?",
            "solution": "It is $\\boxed{\\frac14}$.",
            "answer": "\\frac{1}{4}",
            "subject": "Prealgebra",
            "level": 1,
            "unique_id": "test/prealgebra/1.json",
        },
        "What is half of $\\frac{1}{2}$?",
        "\\frac{1}{4}",
        r"\boxed{0.25}",
    ),
    "DAPO-Math-17k": (
        {
            "data_source": "math_dapo",
            "prompt": [
                {
                    "content": "Solve this. The last line is Answer: $Answer\n\nWhat is 2^5 + 2?",
                    "role": "user",
                }
            ],
            "ability": "MATH",
            "reward_model": {"ground_truth": "34", "style": "rule-lighteval/MATH_v2"},
            "extra_info": {"index": "9a9b6eb4"},
        },
        "Solve this. The last line is Answer: $Answer\n\nWhat is 2^5 + 2?",
        "34",
        "It is 32 + 2.\nAnswer: 34",
    ),
    "DeepMath-103K": (
        {
            "question": "Is every group of order 5 cyclic?",
            "final_answer": "Yes",
            "difficulty": 4.5,
            "topic": "Mathematics -> Algebra -> Group Theory",
            "r1_solution_1": "...",
            "r1_solution_2": "...",
        },
        "Is every group of order 5 cyclic?",
        "Yes",
        r"\boxed{\text{Yes}}",
    ),
    "Big-Math": (
        {
            "problem": "How many primes are below 10?",
            "answer": "4",
            "source": "orca_math",
            "domain": ["Number Theory"],
            "llama8b_solve_rate": 0.75,
        },
        "How many primes are below 10?",
        "4",
        r"\boxed{4}",
    ),
    "OpenR1-Math": (
        {
            "problem": "Solve $x + 1 = 3$.",
            "solution": "...",
            "answer": "x=2",
            "problem_type": "Algebra",
            "question_type": "math-word-problem",
            "source": "olympiads",
            "uuid": "9a9b",
            "is_reasoning_complete": [True, False],
            "generations": ["<think>...</think>"],
            "messages": [
                {"role": "user", "content": "Solve $x + 1 = 3$."},
                {"role": "assistant", "content": "..."},
            ],
        },
        "Solve $x + 1 = 3$.",
        "x=2",
        r"\boxed{2}",
    ),
    "MMLU-Pro": (
        {
            "question_id": 70,
            "question": "Which one follows 89?",
            "options": OPTIONS,
            "answer": "I",
            "answer_index": 8,
            "cot_content": "",
            "category": "math",
            "src": "made",
        },
        "Which one follows 89?\nA. 3\nB. 5",
        "I",
        r"\boxed{I}",
    ),
    "GPQA": (
        {
            "Question": "Which is a noble gas?",
            "Correct Answer": "Neon",
            "Incorrect Answer 1": "Iron",
            "Incorrect Answer 2": "Gold",
            "Incorrect Answer 3": "Zinc",
            "High-level domain": "Chemistry",
        },
        "Which is a noble gas?\nA. ",
        None,
        None,
    ),
    "MBPP": (
        {
            "task_id": 11,
            "text": "Write a function that doubles a number.",
            "code": "def double(n):\n    return 2 * n",
            "test_list": ["assert double(2) == 4", "assert double(-1) == -2"],
            "test_setup_code": "",
            "challenge_test_list": [],
        },
        "Write a function that doubles a number.\nYour program must pass these tests:\nassert double",
        None,
        None,
    ),
}
"""A row, how its problem begins, the reference, and a right response."""

KINDS = {
    "MATH-500": "Prealgebra",
    "DeepMath-103K": "Mathematics -> Algebra -> Group Theory",
    "MMLU-Pro": "math",
    "GPQA": "Chemistry",
}


def documented():
    """The settings of docs/tasks.md, by the set's name."""
    rows = re.findall(r"^\| ([^|`]+) \| `([^`]+)` \| `(\{.*\})` \|$", PAGE.read_text(), re.MULTILINE)
    return {name: (path, parse_yaml(settings, name)) for name, path, settings in rows}


def problem_of(name, folder):
    row, _, _, _ = SHAPES[name]
    (folder / "made.jsonl").write_text(json.dumps(row) + "\n")
    settings = documented()[name][1]
    source = SourceConfig(path=str(folder / "made.jsonl"), **settings)
    (problem,) = ProblemSource(source.filled("train", "problem", "answer"))
    return problem


def test_every_shape_is_documented():
    assert documented().keys() == SHAPES.keys()
    for path, settings in documented().values():
        assert re.fullmatch(r"[\w.-]+/[\w.-]+(:\w+)?", path)
        SourceConfig(path=path, **settings)


@pytest.mark.parametrize("name", SHAPES)
def test_a_row_is_read_as_documented(name, tmp_path):
    row, begin, reference, response = SHAPES[name]
    problem = problem_of(name, tmp_path)
    assert problem.text.startswith(begin)
    assert reference is None or problem.reference == reference
    assert problem.kind == KINDS.get(name, problem.kind)
    assert set(problem.fields) <= set(row)
    if response is not None:
        check = loaded_verifier(problem.verifier or verifier_text("math")).check
        assert check(response, problem).settled(0.5).status is Status.CORRECT
        assert check(r"\boxed{7}", problem).settled(0.5).status is not Status.CORRECT


def test_the_letter_of_a_shuffled_option_is_the_reference(tmp_path):
    problem = problem_of("GPQA", tmp_path)
    assert f"{problem.reference}. Neon" in problem.text.splitlines()
    check = loaded_verifier(problem.verifier).check
    for letter in "ABCD":
        is_right = check(rf"\boxed{{{letter}}}", problem).settled(0.5).status is Status.CORRECT
        assert is_right == (letter == problem.reference)


def test_the_tests_of_a_program_travel_with_its_problem(tmp_path):
    problem = problem_of("MBPP", tmp_path)
    assert problem.fields["test_list"] == SHAPES["MBPP"][0]["test_list"]
    assert problem.reference is None
