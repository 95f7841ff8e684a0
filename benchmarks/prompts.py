"""Seconds to render prompts: one problem after another, and in batches as training does, side by side.

    python -m benchmarks.prompts [--model FOLDER ...] [--problems 100000] [--rounds 1] [--json FILE]

Without a model: the quick-start's, and a byte-pair tokenizer and chat template of Qwen2.5's size. Both ways
must give the same token ids, or the benchmark fails. The problems are sentences of a word problem's length.
"""

import argparse
import json
import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from orchestrator.data.chat import ChatEncoder
from orchestrator.data.prompts import PromptSet, render_prompt
from orchestrator.messages.problems import Problem

BASE = Path(__file__).parents[1] / "experiments/quickstart/base"
INSTRUCTION = "Please reason step by step, and put your final answer within \\boxed{}."
NO_LIMIT = 1_000_000
PARTS = (
    "Natalia sold clips to {} of her friends in April, and then she sold half as many in May.",
    "A train leaves at {} o'clock and travels {} km at a speed of \\frac{{{}}}{{3}} km per minute.",
    "If $x^2 + {}x < {}$ and x > {}, what are the possible values of x?",
    "Each of the {} boxes holds {} pencils; a pencil costs \\${}.50.",
    "How many of them are left after {} days, when {} are taken every day?",
)


def write_tokenizer(folder: Path) -> None:
    """Write a tokenizer with as many tokens as Qwen2.5's, and a chat template that looks at each message."""
    from transformers import Qwen2Tokenizer

    from benchmarks.memory import END, PAD, SHAPES, START, UNUSED_ROWS, Z_TOKEN, byte_pairs

    vocabulary, merges = byte_pairs(SHAPES["0.5"]["vocab_size"] - UNUSED_ROWS)
    template = (
        "{%- if messages[0]['role'] == 'system' %}{{- START + 'system\n' + messages[0]['content'] + END }}"
        "{%- else %}{{- START + 'system\nYou are a helpful assistant.' + END }}{%- endif %}"
        "{%- for message in messages %}{%- if message.role == 'user' or (message.role == 'assistant' and not "
        "message.tool_calls) %}{{- START + message.role + '\n' + message.content + END }}"
        "{%- endif %}{%- endfor %}{%- if add_generation_prompt %}{{- START + 'assistant\n' }}{%- endif %}"
    )
    Qwen2Tokenizer(
        vocab=vocabulary,
        merges=merges,
        unk_token=None,
        eos_token=END,
        pad_token=PAD,
        extra_special_tokens=[START, Z_TOKEN],
        chat_template=template.replace("START", repr(START)).replace("END", repr(END + "\n")),
    ).save_pretrained(folder)


def make_problems(count: int) -> list[Problem]:
    """Problems of 30 to 60 words, the same in each run."""
    draw = random.Random(0)
    texts = (
        " ".join(part.format(*(draw.randint(1, 999) for _ in range(3))) for part in draw.choices(PARTS, k=3))
        for _ in range(count)
    )
    return [Problem.from_text(str(line), text, "1", line=line) for line, text in enumerate(texts, 1)]


def one_by_one(chat: ChatEncoder, problems: Sequence[Problem]) -> list[list[int]]:
    """All prompts, each rendered and encoded by itself."""
    return [render_prompt(chat, problem.text, INSTRUCTION, problem.where) for problem in problems]


def measure(folder: Path, problems: Sequence[Problem], rounds: int) -> dict[str, Any]:
    """The seconds of both ways with this model's tokenizer, medians over the rounds.

    Raises:
        RuntimeError: They gave other token ids.
    """
    from transformers import AutoTokenizer

    seconds: dict[str, list[float]] = {"one by one": [], "in batches": []}
    tokens = 0
    for _ in range(rounds):
        tokenizer = AutoTokenizer.from_pretrained(folder)
        chat = ChatEncoder(tokenizer, eos_tokens=[tokenizer.eos_token_id])
        start = time.perf_counter()
        prompts = PromptSet(chat, problems, INSTRUCTION, NO_LIMIT)
        seconds["in batches"].append(time.perf_counter() - start)
        start = time.perf_counter()
        expected = one_by_one(chat, problems)
        seconds["one by one"].append(time.perf_counter() - start)
        if any(prompts.token_ids(index) != token_ids for index, token_ids in enumerate(expected)):
            raise RuntimeError("the two ways gave other token ids")
        tokens = sum(map(len, expected)) // len(expected)
    return {
        "tokens a prompt": tokens,
        **{way: statistics.median(values) for way, values in seconds.items()},
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--model", type=Path, nargs="*", default=[])
    parser.add_argument("--problems", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    problems = make_problems(options.problems)
    figures: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as made:
        folders = {str(folder): folder for folder in options.model}
        if not folders:
            write_tokenizer(Path(made))
            folders = {"quick-start": BASE, "size of Qwen2.5": Path(made)}
        print(f"{options.problems} prompts, seconds:")
        print(f"{'model':24}{'tokens each':>12}{'one by one':>12}{'in batches':>12}")
        for name, folder in folders.items():
            found = figures[name] = measure(folder, problems, options.rounds)
            print(
                f"{name[-23:]:24}{found['tokens a prompt']:12}{found['one by one']:12.1f}"
                f"{found['in batches']:12.1f}",
                flush=True,
            )
    line = json.dumps({"problems": options.problems, "seconds": figures})
    print(line)
    if options.json:
        options.json.write_text(line + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
