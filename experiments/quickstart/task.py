"""The quick-start's task and untrained model: natural x, y with ax + by = c, solved by guessing x and checking.

In goes a folder and a seed; out come train.jsonl, test.jsonl, sft.jsonl and untrained/, a tiny Qwen2 with a byte-level tokenizer.
A wrong guess costs a check, and the demonstrations often stop at one: the base model has the skill, not the habit, of searching on.
"""

import argparse
import hashlib
import json
import random
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal

Part = Literal["test", "train", "sft"]

GUESS_BUDGETS = (0.6, 0.25, 0.15)
SLIP_RATE = 0.01
MIN_CANDIDATES, MAX_KIND = 3, 7

PAD, START, END, SELF_REWARD = "<pad>", "<|im_start|>", "<|im_end|>", "<|self_reward|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>' }}{% endif %}"
)


@dataclass(frozen=True)
class Equation:
    """ax + by = c with exactly one solution in natural numbers, whether or not 0 counts as one."""

    a: int
    b: int
    c: int
    x: int

    @property
    def candidates(self) -> range:
        """Values of x that sizes alone do not rule out: c - ax leaves at least one b, and x < b because y would not be unique otherwise."""
        return range(1, min((self.c - self.b) // self.a, self.b - 1) + 1)

    @property
    def kind(self) -> str:
        """Difficulty class: how many candidates a search starts with."""
        count = len(self.candidates)
        return f"{MAX_KIND}+ candidates" if count >= MAX_KIND else f"{count} candidates"

    @property
    def problem(self) -> str:
        return f"x,y in N: {self.a}x+{self.b}y={self.c}; x=?"

    @property
    def part(self) -> Part:
        """The file this equation belongs to, by a hash of its numbers: the three never share one, whatever the seed."""
        bucket = hashlib.sha256(f"{self.a},{self.b},{self.c}".encode()).digest()[0] / 256
        return "test" if bucket < 0.125 else "train" if bucket < 0.5 else "sft"


@cache
def equations() -> dict[Part, dict[str, list[Equation]]]:
    """Every equation of the task, by part and kind."""
    found: dict[Part, dict[str, list[Equation]]] = {part: defaultdict(list) for part in ("test", "train", "sft")}
    for a in range(10, 50):
        for b in range(3, 10):
            solutions = defaultdict(list)
            for x in range(199 // a + 1):
                for y in range((199 - a * x) // b + 1):
                    solutions[a * x + b * y].append((x, y))
            for c, pairs in sorted(solutions.items()):
                if len(pairs) == 1 and min(pairs[0]) > 0:
                    equation = Equation(a, b, c, pairs[0][0])
                    if len(equation.candidates) >= MIN_CANDIDATES:
                        found[equation.part][equation.kind].append(equation)
    return found


def balanced(part: Part, count: int, rng: random.Random) -> list[Equation]:
    """`count` different equations of a part, equally many of each kind, shuffled. Raises ValueError if a kind has too few."""
    kinds = equations()[part]
    chosen = [equation for kind in sorted(kinds) for equation in rng.sample(kinds[kind], count // len(kinds))]
    rng.shuffle(chosen)
    return chosen


def solution(equation: Equation, rng: random.Random) -> str:
    """A demonstration: guess, check by division with remainder, stop at a remainder of 0 or when patience ends, then box the last guess."""
    budget = rng.choices((1, 2, 3), weights=GUESS_BUDGETS)[0]
    steps = []
    for x in rng.sample(equation.candidates, min(budget, len(equation.candidates))):
        rest = equation.c - equation.a * x
        if rng.random() < SLIP_RATE:
            rest = max(1, rest + rng.choice((-10, -1, 1, 10)))
        quotient, remainder = divmod(rest, equation.b)
        check = f"{equation.b}*{quotient}" + (f"+{remainder}" if remainder else "")
        steps.append(f"x={x}:{equation.c}-{equation.a * x}={rest}={check};")
        if remainder == 0:
            break
    return "".join(steps) + f"\\boxed{{{x}}}"


def write_jsonl(path: Path, rows: Iterable[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_data(folder: Path, seed: int, train: int = 1250, test: int = 300, sft: int = 40_000) -> None:
    """Writes train.jsonl and test.jsonl ({problem, answer, kind}) and sft.jsonl ({problem, solution})."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for part, count in (("test", test), ("train", train)):
        rows = ({"problem": e.problem, "answer": str(e.x), "kind": e.kind} for e in balanced(part, count, rng))
        write_jsonl(folder / f"{part}.jsonl", rows)
    kinds = [kind for _, kind in sorted(equations()["sft"].items())]
    shown = (rng.choice(rng.choice(kinds)) for _ in range(sft))
    write_jsonl(folder / "sft.jsonl", ({"problem": e.problem, "solution": solution(e, rng)} for e in shown))


def write_untrained(folder: Path, seed: int) -> None:
    """Writes a freshly initialised Qwen2 of 0.8M parameters with its tokenizer. Raises ValueError if the saved tokenizer loses text."""
    import torch
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import AutoTokenizer, GenerationConfig, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

    # Qwen2Tokenizer always splits by bytes: naming the vocabulary as its byte alphabet does keeps spaces, newlines and any other text.
    special = [PAD, START, END, SELF_REWARD]
    vocabulary = {token: index for index, token in enumerate(special + sorted(ByteLevel.alphabet()))}
    tokenizer = Qwen2Tokenizer(
        vocab=vocabulary,
        merges=[],
        unk_token=None,
        eos_token=END,
        pad_token=PAD,
        extra_special_tokens=[START, SELF_REWARD],
        chat_template=CHAT_TEMPLATE,
        model_max_length=512,
    )
    tokenizer.save_pretrained(folder)
    config = Qwen2Config(
        vocab_size=len(vocabulary),
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=vocabulary[END],
        pad_token_id=vocabulary[PAD],
    )
    torch.manual_seed(seed)
    model = Qwen2ForCausalLM(config).float()
    model.generation_config = GenerationConfig(
        do_sample=True, temperature=1.0, top_p=1.0, top_k=0, eos_token_id=config.eos_token_id, pad_token_id=config.pad_token_id
    )
    model.save_pretrained(folder)

    text = "x,y in N: 23x+7y=118; x=?\n\\boxed{3} \u2713"
    loaded = AutoTokenizer.from_pretrained(folder)
    prompt = loaded.apply_chat_template([{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False)
    for written in (text, prompt, "".join(special)):
        if loaded.decode(loaded.encode(written, add_special_tokens=False)) != written:
            raise ValueError(f"{folder}: the tokenizer does not give back {written!r}; was the model type or the vocabulary changed?")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.quickstart.task", description=__doc__)
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    write_data(arguments.out_dir, arguments.seed)
    write_untrained(arguments.out_dir / "untrained", arguments.seed)
    sizes = Counter({part: sum(map(len, kinds.values())) for part, kinds in equations().items()})
    print(f"{arguments.out_dir}: equations in all, by part: {dict(sizes)}")


if __name__ == "__main__":
    main()
