"""The quick-start's task and untrained model: which two numbers of a set have a given sum?

In: a folder and a seed. Out: train.jsonl, test.jsonl, voting.jsonl, sft.jsonl and untrained/, a tiny Qwen2
with a byte-level tokenizer. A solution guesses pairs and checks each by one addition. The demonstrations
often give up after a wrong guess, so that the base model can search but often does not.
"""

import argparse
import hashlib
import json
import random
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import combinations, cycle, islice
from pathlib import Path
from typing import Literal

Part = Literal["test", "train", "sft"]

NUMBERS = range(10, 50)
SET_SIZES = range(3, 7)
GIVE_UP_RATE = 0.5
MAX_GUESSES = 4

PAD, START, END, SELF_REWARD = "<pad>", "<|im_start|>", "<|im_end|>", "<|self_reward|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>' }}{% endif %}"
)


@dataclass(frozen=True)
class PairSum:
    """A set of numbers, in ascending order, of which exactly one pair has the sum `total`."""

    numbers: tuple[int, ...]
    total: int

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """All pairs of the set, each in ascending order."""
        return list(combinations(self.numbers, 2))

    @property
    def answer(self) -> int:
        """The smaller number of the pair."""
        return next(a for a, b in self.pairs if a + b == self.total)

    @property
    def kind(self) -> str:
        """The difficulty class, by the size of the set."""
        return f"{len(self.numbers)} numbers"

    @property
    def problem(self) -> str:
        """The problem's text."""
        return f"a<b in {{{','.join(map(str, self.numbers))}}}, a+b={self.total}; a=?"

    @property
    def part(self) -> Part:
        """The file that this problem belongs to, by a hash that does not depend on the seed."""
        bucket = hashlib.sha256(self.problem.encode()).digest()[0] / 256
        return "test" if bucket < 0.1 else "train" if bucket < 0.5 else "sft"


def draw(size: int, part: Part, rng: random.Random) -> PairSum:
    """A random problem with `size` numbers that belongs to `part`."""
    while True:
        numbers = tuple(sorted(rng.sample(NUMBERS, size)))
        problem = PairSum(numbers, sum(rng.sample(numbers, 2)))
        if problem.part == part and sum(a + b == problem.total for a, b in problem.pairs) == 1:
            return problem


def draw_distinct(count: int, part: Part, rng: random.Random) -> list[PairSum]:
    """`count` different problems of a part, in random order, with equally many of each set size."""
    chosen: dict[PairSum, None] = {}
    for size in islice(cycle(SET_SIZES), count):
        while (problem := draw(size, part, rng)) in chosen:
            pass
        chosen[problem] = None
    return rng.sample(list(chosen), count)


def solution(problem: PairSum, rng: random.Random) -> str:
    """A demonstration: pairs in random order, each sum compared with the total, until one is right or it
    gives up.

    The last pair gives the answer in both cases. So a demonstration that gave up is wrong, and its last
    check shows it.
    """
    steps = []
    for a, b in rng.sample(problem.pairs, min(MAX_GUESSES, len(problem.pairs))):
        difference = a + b - problem.total
        comparison = "" if difference == 0 else f"{'<' if difference < 0 else '>'}{problem.total}"
        steps.append(f"{a}+{b}={a + b}{comparison};")
        if difference == 0 or rng.random() < GIVE_UP_RATE:
            break
    return "".join(steps) + f"\\boxed{{{a}}}"


def write_jsonl(path: Path, rows: Iterable[dict]) -> None:
    """Write one JSON object a line."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def write_data(folder: Path, seed: int, train: int = 4000, test: int = 300, sft: int = 40_000) -> None:
    """Write train.jsonl and test.jsonl ({problem, answer, kind}) and sft.jsonl ({problem, solution})."""
    rng = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    parts: list[tuple[Part, int]] = [("test", test), ("train", train)]
    for part, count in parts:
        drawn = draw_distinct(count, part, rng)
        write_jsonl(
            folder / f"{part}.jsonl",
            ({"problem": p.problem, "answer": str(p.answer), "kind": p.kind} for p in drawn),
        )
    shown = draw_distinct(sft, "sft", rng)
    write_jsonl(folder / "sft.jsonl", ({"problem": p.problem, "solution": solution(p, rng)} for p in shown))


def write_voting(folder: Path, seed: int, count: int = 600) -> None:
    """Write voting.jsonl: more held-out problems, none of which is in the folder's test.jsonl."""
    known = {
        json.loads(line)["problem"]
        for line in (folder / "test.jsonl").read_text(encoding="utf-8").splitlines()
    }
    drawn = draw_distinct(count + len(known), "test", random.Random(seed + 1))
    new = [problem for problem in drawn if problem.problem not in known][:count]
    write_jsonl(
        folder / "voting.jsonl",
        ({"problem": p.problem, "answer": str(p.answer), "kind": p.kind} for p in new),
    )


def write_untrained(folder: Path, seed: int) -> None:
    """Write a randomly initialised Qwen2 of 0.8M parameters with its tokenizer.

    Raises:
        ValueError: The saved tokenizer loses text.
    """
    import torch
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import AutoTokenizer, GenerationConfig, Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer

    # Qwen2Tokenizer always splits by bytes. A vocabulary of its byte alphabet keeps spaces, newlines and
    # all other text.
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
        do_sample=True,
        temperature=1.0,
        top_p=1.0,
        top_k=0,
        eos_token_id=config.eos_token_id,
        pad_token_id=config.pad_token_id,
    )
    model.save_pretrained(folder)

    text = "a<b in {12,26,31}, a+b=43; a=?\n\\boxed{12} \u2713"
    loaded = AutoTokenizer.from_pretrained(folder)
    prompt = loaded.apply_chat_template(
        [{"role": "user", "content": text}], add_generation_prompt=True, tokenize=False
    )
    for written in (text, prompt, "".join(special)):
        if loaded.decode(loaded.encode(written, add_special_tokens=False)) != written:
            raise ValueError(
                f"{folder}: encoding and decoding change {written!r}; was the model type or the vocabulary "
                "changed?"
            )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m experiments.quickstart.task", description=__doc__)
    parser.add_argument("out_dir", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    write_data(arguments.out_dir, arguments.seed)
    write_voting(arguments.out_dir, arguments.seed)
    write_untrained(arguments.out_dir / "untrained", arguments.seed)


if __name__ == "__main__":
    main()
