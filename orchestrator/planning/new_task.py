"""`laser new`: a small working example of a task of one's own, to be changed step by step.

In: a folder that does not exist. Out: in it problems, a verifier with its test, a recipe and a README.
"""

import importlib.util
import json
import random
from itertools import combinations
from pathlib import Path

from orchestrator.errors import ConfigError

OTHER_MODEL = "Qwen/Qwen2.5-0.5B-Instruct"
"""The model of the recipe where the quick-start's tiny one is not installed."""
PROBLEMS = {"train.jsonl": 400, "test.jsonl": 40}

VERIFIER = '''\
"""Marks a solution: which number of the set is the smaller one of the pair with the given sum?"""

import re

from orchestrator.messages.problems import Problem
from orchestrator.messages.verdicts import Status, Verdict


def check(response: str, problem: Problem) -> Verdict:
    r"""1 for the right number, 0.25 for another number of the set, 0 for any other.

    `problem` has the row: `problem.text`, `problem.messages`, `problem.reference`, and its other fields in
    `problem.fields`. A status of correct or wrong follows from the reward. Raise an exception where no mark
    can be given: the sample then has the status `error` and no reward at all.
    """
    boxes = re.findall(r"\\\\boxed\\{(\\d+)\\}", response)
    if not boxes:
        return Verdict(Status.NO_ANSWER, detail="no \\\\boxed{} with a number")
    number, numbers, total = int(boxes[-1]), problem.fields["numbers"], problem.fields["total"]
    in_set = number in numbers
    is_right = in_set and total - number in numbers and number < total - number
    reward = 1.0 if is_right else 0.25 if in_set else 0.0
    parts = {"in_set": float(in_set), "right": float(is_right)}
    return Verdict(Status.WRONG, boxes[-1], f"{number} of {numbers}", reward=reward, parts=parts)
'''

TEST = '''\
"""What the verifier gives for right, half right and wrong solutions: `python -m pytest`."""

import pytest
from verifier import check

from orchestrator.messages.problems import Problem
from orchestrator.messages.verdicts import Status

FIELDS = {"numbers": [13, 16, 38], "total": 54}
PROBLEM = Problem.from_text("1", "a<b in {13,16,38}, a+b=54; a=?", "16", fields=FIELDS)


@pytest.mark.parametrize(
    ("response", "reward"),
    [
        (r"16+38=54;\\boxed{16}", 1.0),
        (r"\\boxed{38}", 0.25),
        (r"13+16=29<54;\\boxed{13}", 0.25),
        (r"\\boxed{54}", 0.0),
        (r"\\boxed{13} or \\boxed{16}", 1.0),
    ],
)
def test_reward(response, reward):
    assert check(response, PROBLEM).reward == reward


def test_a_response_without_a_number_has_no_answer():
    assert check("I give up.", PROBLEM).status is Status.NO_ANSWER
'''

RECIPE = """\
# A task of your own: PYTHONPATH=. laser train recipe.yaml
run: {{name: own-task, steps: 30, eval_every: 15, save_every: 15}}
model: {{path: {model}}}
data:
  train: train.jsonl
  eval: test.jsonl
  instruction: ""
verification: {{verifier: "verifier:check", cpus: 0.25}}
rollout:
  samples_per_prompt: 8
  prompts_per_step: 16
  max_prompt_tokens: 128
  max_response_tokens: 96
  cpus: 0.25
learning:
  cpus_per_rank: 0.25
  lr: 1.0e-4
  warmup_steps: 5
  grad_clip: 0.5
  mini_batches: 2
  tokens_per_micro_batch: 2048
loss: {{alpha: 0.5, beta_v: 0.1, tau: 0.1, reasoning_warmup_steps: 5, self_reward_warmup_steps: 10}}
self_reward: {{token: "{token}"}}
evaluation: {{samples_per_problem: 4}}
"""

README = """\
# A task of your own

| file | what to put there |
|---|---|
| train.jsonl, test.jsonl | one problem a line: `problem`, `answer`, and any other fields |
| verifier.py | `check(response, problem)`: the reward, from 0 to 1 |
| test_verifier.py | what the verifier must give |
| recipe.yaml | the settings of the run |

```
python -m pytest                                                     # is the reward right?
PYTHONPATH=. laser check recipe.yaml                                 # do data, model and settings fit?
PYTHONPATH=. laser verify test.jsonl --responses responses.jsonl --verifier verifier:check
PYTHONPATH=. laser train recipe.yaml
PYTHONPATH=. laser eval --model runs/own-task --data test.jsonl verification.verifier=verifier:check
```
"""


def write_example(folder: Path) -> list[Path]:
    """Write the example into a new folder.

    Returns:
        The files.

    Raises:
        ConfigError: The folder exists and is not empty, or cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder}: exists already; name a folder that does not")
    model = _quick_start_model()
    token = "<|self_reward|>" if model is not None else "<|vision_start|>"
    train, test = (
        "".join(json.dumps(row) + "\n" for row in _problems(count, seed))
        for seed, count in enumerate(PROBLEMS.values())
    )
    files = {
        "train.jsonl": train,
        "test.jsonl": test,
        "responses.jsonl": json.dumps({"id": "test-0", "responses": ["\\boxed{10}", "No idea."]}) + "\n",
        "verifier.py": VERIFIER,
        "test_verifier.py": TEST,
        "recipe.yaml": RECIPE.format(model=model or OTHER_MODEL, token=token),
        "README.md": README,
    }
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be written ({error.strerror})") from error
    return [folder / name for name in files]


def _quick_start_model() -> Path | None:
    """The folder of the quick-start's base model; None where it is not installed."""
    spec = importlib.util.find_spec("experiments")
    places = (
        [Path(place) / "quickstart" / "base" for place in (spec.submodule_search_locations or ())]
        if spec
        else []
    )
    return next((place for place in places if (place / "config.json").is_file()), None)


def _problems(count: int, seed: int) -> list[dict[str, object]]:
    """Sets of numbers with one pair that has a given sum; those of the two seeds are different."""
    rng = random.Random(seed)
    part = "test" if seed else "train"
    rows: dict[str, dict[str, object]] = {}
    while len(rows) < count:
        numbers = sorted(rng.sample(range(10, 50), rng.choice([3, 4])))
        pair = sorted(rng.sample(numbers, 2))
        sums = [a + b for a, b in combinations(numbers, 2)]
        if sums.count(sum(pair)) != 1 or sum(numbers) % 2 != seed % 2:
            continue
        text = f"a<b in {{{','.join(map(str, numbers))}}}, a+b={sum(pair)}; a=?"
        rows[text] = {
            "id": f"{part}-{len(rows)}",
            "problem": text,
            "answer": pair[0],
            "kind": f"{len(numbers)} numbers",
            "numbers": numbers,
            "total": sum(pair),
        }
    return list(rows.values())
