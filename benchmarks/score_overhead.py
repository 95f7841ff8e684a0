"""What the score costs: plain generation, the one-pass score, and a second pass over the text, side by side.

    python benchmarks/score_overhead.py [--model FOLDER] [--requests 64] [--rounds 7] [--json FILE]

All three sample the same number of tokens from the same engine, in turns, so that the machine's noise affects
all of them alike. The second pass is that of the reference implementation: it strips the text, tokenises it
again, and prefills it with prompt log-probs. The lengths are exact: in all three, the benchmark's logits
processor bars EOS before the last token and forces it there.
"""

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ |= {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_USE_V2_MODEL_RUNNER": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
}
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")

import torch
from vllm import SamplingParams
from vllm.engine.arg_utils import EngineArgs
from vllm.sampling_params import RequestOutputKind
from vllm.v1.engine.llm_engine import LLMEngine
from vllm.v1.sample.logits_processor import LogitsProcessor
from vllm.v1.sample.logits_processor.builtin import process_dict_updates

from actors.last_token import LastTokenProcessor, sampling_extra_args
from orchestrator.data.tokens import load_tokens

PROMPT_TOKENS = 64
RESPONSE_TOKENS = (64, 256)
BASE = Path(__file__).parents[1] / "experiments/quickstart/base"


class EndAt(LogitsProcessor):
    """Ends a request with EOS after exactly `extra_args["end_at"]` tokens, where that is given."""

    def __init__(self, vllm_config: Any, device: torch.device, is_pin_memory: bool) -> None:
        self.requests: dict[int, tuple[int, int, list[int]]] = {}

    def is_argmax_invariant(self) -> bool:
        return False

    def update_state(self, batch_update: Any) -> None:
        def state(
            params: SamplingParams, prompt_ids: Any, output_ids: list[int]
        ) -> tuple[int, int, list[int]] | None:
            extra = params.extra_args or {}
            return (extra["end_at"], extra["end_with"], output_ids) if "end_at" in extra else None

        process_dict_updates(self.requests, batch_update, state)

    def apply(self, logits: torch.Tensor) -> torch.Tensor:
        for last in (False, True):
            rows = [
                row
                for row, (length, _, output) in self.requests.items()
                if len(output) < length and last == (len(output) == length - 1)
            ]
            if not rows:
                continue
            eos = self.requests[rows[0]][1]
            if last:
                logits[rows] = -float("inf")
            logits[rows, eos] = 0.0 if last else -float("inf")
        return logits


@dataclass(frozen=True)
class Bench:
    """An engine with its prompts, and the three ways to sample and score."""

    engine: LLMEngine
    tokenizer: Any
    z_token: int
    eos: int
    prompts: list[list[int]]

    def plain(self, length: int) -> list[Any]:
        """Sampling alone, with the log-probs of the sampled tokens."""
        return self._run(self.prompts, lambda seed: self._params(length, seed))

    def one_pass(self, length: int) -> list[Any]:
        """Sampling, and log pi(z_c) from one more decode step."""
        extra = sampling_extra_args(self.z_token, [self.eos])
        outputs = self._run(
            self.prompts,
            lambda seed: self._params(
                length + 1, seed, end_at=length, ignore_eos=True, stop_token_ids=[self.z_token], **extra
            ),
        )
        assert all(
            output.token_ids[-1] == self.z_token and len(output.token_ids) == length + 1 for output in outputs
        )
        return outputs

    def two_pass(self, length: int) -> list[Any]:
        """Sampling alone, then tokenising again and a prefill whose last prompt log-prob is that of z_c."""
        outputs = self.plain(length)
        texts = [self.tokenizer.decode(output.token_ids, skip_special_tokens=True) for output in outputs]
        again = [
            # A text that is tokenised again may be longer; the cut keeps the work equal.
            [
                *prompt,
                *self.tokenizer(text, add_special_tokens=False).input_ids[: length - 1],
                self.eos,
                self.z_token,
            ]
            for prompt, text in zip(self.prompts, texts, strict=True)
        ]
        return self._run(
            again,
            lambda seed: SamplingParams(
                max_tokens=1, prompt_logprobs=0, output_kind=RequestOutputKind.FINAL_ONLY
            ),
        )

    def _params(self, max_tokens: int, seed: int, end_at: int | None = None, **more: Any) -> SamplingParams:
        own = {key: more.pop(key) for key in list(more) if key not in ("ignore_eos", "stop_token_ids")}
        more.setdefault("stop_token_ids", [self.eos])
        return SamplingParams(
            temperature=1.0,
            seed=seed,
            max_tokens=max_tokens,
            logprobs=0,
            flat_logprobs=True,
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
            extra_args={"end_at": end_at or max_tokens, "end_with": self.eos, **own},
            **more,
        )

    def _run(self, prompts: list[list[int]], params: Callable[[int], SamplingParams]) -> list[Any]:
        for number, prompt in enumerate(prompts):
            self.engine.add_request(str(number), {"prompt_token_ids": prompt}, params(number))
        outputs: dict[str, Any] = {}
        while self.engine.has_unfinished_requests():
            outputs |= {
                output.request_id: output.outputs[0] for output in self.engine.step() if output.finished
            }
        return [outputs[str(number)] for number in range(len(prompts))]


def prepare(model: Path, requests: int) -> Bench:
    """An engine of `model` and as many random prompts as `requests`."""
    tokens = load_tokens(str(model), "<|self_reward|>" if model == BASE else None)
    eos = tokens.eos_tokens[0]
    z_token = (
        tokens.z_token
        if tokens.z_token is not None
        else int(json.loads((model / "self_reward.json").read_text())["token_id"])
    )
    longest = PROMPT_TOKENS + max(RESPONSE_TOKENS) + 8
    engine = LLMEngine.from_engine_args(
        EngineArgs(
            model=str(model),
            dtype="float32",
            max_model_len=longest,
            max_num_seqs=requests,
            max_num_batched_tokens=max(4096, requests * longest),
            enable_prefix_caching=False,
            kv_cache_memory_bytes=2**30,
            enforce_eager=True,
            async_scheduling=False,
            disable_log_stats=True,
            logits_processors=[LastTokenProcessor, EndAt],
        )
    )
    generator = torch.Generator().manual_seed(0)
    usable = [token for token in range(len(tokens.tokenizer)) if token not in (z_token, *tokens.eos_tokens)]
    drawn = torch.randint(len(usable), (requests, PROMPT_TOKENS), generator=generator)
    return Bench(
        engine, tokens.tokenizer, z_token, eos, [[usable[index] for index in row] for row in drawn.tolist()]
    )


def measure(bench: Bench, length: int, rounds: int) -> dict[str, Any]:
    """Seconds of each way in turns, and the medians of the rounds' ratios."""
    ways = {"plain": bench.plain, "one pass": bench.one_pass, "two passes": bench.two_pass}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        order = list(ways.items())
        for name, run in order[number % 3 :] + order[: number % 3]:
            began = time.perf_counter()
            run(length)
            if number:  # The first round is a warm-up.
                seconds[name].append(time.perf_counter() - began)
    ratio = {
        name: statistics.median(a / b for a, b in zip(seconds[name], seconds["plain"], strict=True))
        for name in ways
    }
    saved = statistics.median(
        two / one for two, one in zip(seconds["two passes"], seconds["one pass"], strict=True)
    )
    return {
        "response_tokens": length,
        "median_seconds": {name: round(statistics.median(values), 3) for name, values in seconds.items()},
        "ratio_to_plain": {name: round(value, 3) for name, value in ratio.items()},
        "two_passes_to_one": round(saved, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--model", type=Path, default=BASE, help="model folder with self_reward.json (the quick-start's base)"
    )
    parser.add_argument("--requests", type=int, default=64, help="requests at once")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of all three ways")
    parser.add_argument("--json", type=Path, help="write the figures there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    bench = prepare(options.model, options.requests)
    found = [measure(bench, length, options.rounds) for length in RESPONSE_TOKENS]
    print(
        f"{options.model}: {options.requests} requests, prompts of {PROMPT_TOKENS} tokens, "
        f"medians of {options.rounds} rounds in turns"
    )
    print(f"{'tokens':>6} {'plain s':>8} {'one pass':>16} {'two passes':>16} {'two / one':>10}")
    for row in found:
        seconds, ratio = row["median_seconds"], row["ratio_to_plain"]
        one, two = (f"{seconds[name]:.2f} s ({ratio[name]:.3f} x)" for name in ("one pass", "two passes"))
        print(
            f"{row['response_tokens']:>6} {seconds['plain']:>8.2f} {one:>16} {two:>16} "
            f"{row['two_passes_to_one']:>10.3f}"
        )
    if options.json:
        settings = {
            "model": str(options.model),
            "requests": options.requests,
            "prompt_tokens": PROMPT_TOKENS,
            "rounds": options.rounds,
        }
        options.json.write_text(json.dumps(settings | {"lengths": found}, indent=2) + "\n")


if __name__ == "__main__":
    main()
