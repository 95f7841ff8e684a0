"""Real DeepSpeed ZeRO-3 ranks: losses and gradients however the batch is split, bit-equality without
self-reward, checkpoints.
"""

import math
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray
import torch
from transformers import Qwen2ForCausalLM

from actors.learning import LearnerRank
from orchestrator.algorithm.advantages import group_advantages
from orchestrator.algorithm.micro_batches import plan_micro_batches
from orchestrator.algorithm.self_reward import class_weights
from orchestrator.config.training import RunConfig
from orchestrator.messages.batches import MiniBatch, StepSums, StreamedPart, StreamedRound, TrainBatch
from orchestrator.messages.problems import Problem
from orchestrator.messages.trajectories import Generated, Trajectories, pack
from orchestrator.messages.verdicts import Status, Verdict
from orchestrator.pools.collect import CheckedGroup, to_batch
from orchestrator.pools.ranks import learner_settings, start_ranks
from orchestrator.training.stream_plan import StreamPlan
from orchestrator.training.train_batch import estimate_advantages, make_train_batch
from tests.settings import configure

pytestmark = pytest.mark.usefixtures("ray_cluster")

# Workers cannot import a module of the tests.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])

Z_TOKEN, EOS, GROUPS, SAMPLES, C_REF = 3, 2, 3, 4, -6.0


def settings(
    folder: Path, ranks: int = 1, checkpointing: bool = False, shares: bool = False, **loss: float | str
) -> RunConfig:
    return configure(
        model={"path": str(folder)},
        rollout={"max_prompt_tokens": 32, "max_response_tokens": 32},
        learning={
            "num_ranks": ranks,
            "lr": 1e-2,
            "tokens_per_micro_batch": 1024,
            "gradient_checkpointing": checkpointing,
            "share_prefixes": shares,
        },
        loss={"alpha": 1.0, "tau": 0.0, **loss},
        self_reward={"token": "<|self_reward|>"},
    )


@contextmanager
def learner(
    config: RunConfig, z_token: int | None = Z_TOKEN, worker: type = LearnerRank
) -> Iterator[list[Any]]:
    def spawn(cls: type, rank: int, *arguments: Any) -> Any:
        return (
            ray.remote(cls)
            .options(num_cpus=1, runtime_env={"env_vars": {"OMP_NUM_THREADS": "1"}})
            .remote(*arguments)
        )

    ranks = start_ranks(learner_settings(config, z_token), spawn, worker=worker)
    yield ranks
    for rank in ranks:
        ray.kill(rank)


@pytest.fixture(scope="module")
def groups() -> list[Trajectories]:
    """Random solutions of unlike length; one in four is truncated."""
    rng = np.random.default_rng(0)
    packed = []
    for _ in range(GROUPS):
        samples = []
        for number in range(SAMPLES):
            length, finished = int(rng.integers(3, 30)), number != 0
            tokens = rng.integers(10, 250, length).tolist() + ([EOS] if finished else [])
            logprobs = rng.uniform(-6, -4, len(tokens)).tolist()
            z_logprob = -5.0 if finished else float("nan")
            samples.append(Generated(tokens, logprobs, finished, z_logprob, [0] * len(tokens)))
        packed.append(pack(rng.integers(10, 250, int(rng.integers(4, 12))).tolist(), samples))
    return packed


def batch_of(
    groups: list[Trajectories], ranks: int, tokens_per_micro_batch: int, alpha: float = 1.0
) -> TrainBatch:
    n = len(groups) * SAMPLES
    finished = np.concatenate([group.finished for group in groups])
    rewards = (np.arange(n) % 3 == 1).astype(np.float32)
    number = torch.arange(n) // SAMPLES
    lengths = np.concatenate([group.lengths + len(group.prompt_ids) for group in groups]).tolist()
    tokens = int(np.concatenate([group.lengths for group in groups]).sum())
    return TrainBatch(
        step=1,
        groups=[ray.put(group) for group in groups],
        samples_per_group=SAMPLES,
        advantages=group_advantages(torch.from_numpy(rewards), number).numpy().astype(np.float32),
        rewards=rewards,
        class_weights=class_weights(torch.from_numpy(rewards), torch.from_numpy(finished))
        .numpy()
        .astype(np.float32),
        c_ref=np.full(n, C_REF, np.float32),
        mini_batches=[
            MiniBatch(plan_micro_batches(lengths, ranks, tokens_per_micro_batch), tokens, int(finished.sum()))
        ],
        alpha=alpha,
    )


def gradients(ranks: list[Any], batch: TrainBatch) -> tuple[list[StepSums], dict[str, np.ndarray]]:
    results = ray.get([rank.gradients.remote(batch) for rank in ranks])
    return [sums for sums, _ in results], results[0][1]


def reference_gradients(
    model: Qwen2ForCausalLM, groups: list[Trajectories], batch: TrainBatch, beta_v: float
) -> float:
    """The same loss written out over one sample at a time with transformers and autograd: no padding, no
    packing, no ZeRO.
    """
    mini, loss = batch.mini_batches[0], torch.zeros(())
    for index in range(len(groups) * SAMPLES):
        sample = groups[index // SAMPLES].sample(index % SAMPLES)
        tokens = torch.from_numpy(np.concatenate([sample.prompt_ids, sample.response_ids]).astype(np.int64))
        logprobs = model(tokens[None]).logits[0].log_softmax(-1)
        start = len(sample.prompt_ids) - 1
        chosen = logprobs[start:-1].gather(1, tokens[start + 1 :, None])
        ratio = (chosen - chosen.detach()).exp()
        loss = loss - (ratio * float(batch.advantages[index])).sum() / mini.total_tokens
        if sample.finished:
            score = beta_v * (logprobs[-1, Z_TOKEN] - C_REF)
            loss = (
                loss
                + batch.alpha
                * float(batch.class_weights[index])
                * (score - float(batch.rewards[index])) ** 2
                / mini.total_finished
            )
    loss.backward()
    return loss.item()


@pytest.mark.parametrize(("ranks", "checkpointing", "shares"), [(1, False, False), (2, True, True)])
def test_loss_gradients_and_update_equal_plain_torch_under_any_split(
    ranks: int, checkpointing: bool, shares: bool, models: dict[str, Path], groups: list[Trajectories]
) -> None:
    config = settings(models["untied"], ranks, checkpointing, shares)
    model = Qwen2ForCausalLM.from_pretrained(models["untied"], dtype=torch.float32)
    expected_loss = reference_gradients(model, groups, batch_of(groups, ranks, 1024), beta_v=0.1)
    with learner(config) as workers:
        for budget in (1024, 128, 48):
            batch = batch_of(groups, ranks, budget)
            sums, found = gradients(workers, batch)
            assert sum(rank.total_loss for rank in sums) == pytest.approx(expected_loss, abs=1e-5)
            assert sum(rank.tokens for rank in sums) == batch.mini_batches[0].total_tokens
            for name, parameter in model.named_parameters():
                np.testing.assert_allclose(
                    found[name], parameter.grad, atol=2e-6, rtol=2e-4, err_msg=f"{name}, budget {budget}"
                )
        ray.get([worker.step.remote(batch) for worker in workers])
        published = ray.get([worker.publish.remote("float32", 10**6) for worker in workers])[0]
        chunks = ray.get(published.chunks)
    assert published.size == sum(chunk.data.nbytes for chunk in chunks)
    updated = {name: tensor for chunk in chunks for name, tensor in chunk.tensors()}

    learning = config.learning
    torch.nn.utils.clip_grad_norm_(model.parameters(), learning.grad_clip)
    torch.optim.AdamW(
        model.parameters(), lr=learning.lr, betas=learning.betas, weight_decay=learning.weight_decay
    ).step()
    for name, parameter in model.named_parameters():
        # Adam's first step is lr in the gradient's direction, which rounding decides where the gradient is
        # next to nothing.
        clear = parameter.grad.abs() > 1e-5
        torch.testing.assert_close(
            updated[name][clear], parameter.detach()[clear], atol=2e-4, rtol=0, msg=name
        )


def test_the_engine_is_compared_with_the_weights_it_had(
    models: dict[str, Path], groups: list[Trajectories]
) -> None:
    """From the second mini-batch on the learner has moved: that gap is the update's, not the engine's."""
    once = batch_of(groups, 1, 256)
    twice = replace(once, mini_batches=once.mini_batches * 2)
    with learner(settings(models["untied"])) as (rank,):
        before, _ = ray.get(rank.gradients.remote(once))
        sums = ray.get(rank.step.remote(twice))
    assert sums.tokens == 2 * before.tokens
    assert sums.compared_tokens == before.compared_tokens
    assert sums.mismatch_kl == before.mismatch_kl > 0


def test_the_first_mini_batch_needs_no_old_log_probs(
    models: dict[str, Path], groups: list[Trajectories]
) -> None:
    """Its policy is still the one before the first update, so that the ratio is 1 either way."""
    batch = batch_of(groups, 1, 256)
    with learner(settings(models["untied"]), worker=OldLogProbsRank) as (rank,):
        without, expected = ray.get(rank.gradients.remote(batch))
        ray.get(rank.compute_old_logprobs.remote())
        computed, found = ray.get(rank.gradients.remote(batch))
    assert without.total_loss == pytest.approx(computed.total_loss, rel=1e-6)
    for name, gradient in expected.items():
        np.testing.assert_allclose(found[name], gradient, atol=1e-7, rtol=1e-5, err_msg=name)


def test_without_weight_the_self_reward_changes_no_bit(
    models: dict[str, Path], groups: list[Trajectories]
) -> None:
    batch = batch_of(groups, 1, 256, alpha=0.0)
    with (
        learner(settings(models["untied"], alpha=0.0)) as on,
        learner(settings(models["untied"], alpha=0.0), z_token=None) as off,
    ):
        (with_token,), gradients_with = gradients(on, batch)
        (without,), gradients_without = gradients(off, batch)
    assert with_token.total_loss == without.total_loss
    assert with_token.policy_loss == without.policy_loss
    assert with_token.self_reward_loss > 0, "the score is still measured"
    assert without.self_reward_loss == 0
    for name, gradient in gradients_with.items():
        np.testing.assert_array_equal(gradient, gradients_without[name], err_msg=name)


def test_a_restored_checkpoint_goes_on_as_if_it_had_never_stopped(
    models: dict[str, Path], groups: list[Trajectories], tmp_path: Path
) -> None:
    batch = batch_of(groups, 1, 256)
    checkpoint, export = str(tmp_path / "checkpoint"), tmp_path / "export"
    with learner(settings(models["tied"])) as (rank,):
        first = ray.get(rank.step.remote(batch))
        ray.get(rank.save.remote(checkpoint))
        ray.get(rank.release_device.remote())  # an engine's turn in between changes nothing
        ray.get(rank.take_device.remote())
        second = ray.get(rank.step.remote(batch))
        ray.get(rank.export.remote(str(export)))
    with learner(settings(models["tied"])) as (restored,):
        ray.get(restored.load.remote(checkpoint, 1))
        again = ray.get(restored.step.remote(batch))
        chunks = ray.get(ray.get(restored.publish.remote("float32", 100_000)).chunks)
    assert second.total_loss != first.total_loss
    assert (again.total_loss, again.grad_norm) == (second.total_loss, second.grad_norm)

    published = {name: tensor for chunk in chunks for name, tensor in chunk.tensors()}
    exported = Qwen2ForCausalLM.from_pretrained(export, dtype=torch.float32)
    for name, parameter in exported.named_parameters(remove_duplicate=False):
        torch.testing.assert_close(parameter.detach(), published[name], rtol=0, atol=0, msg=name)
    assert "lm_head.weight" in published, (
        "vLLM keeps a packed copy of tied embeddings, so they travel under both names"
    )
    start = Qwen2ForCausalLM.from_pretrained(models["tied"], dtype=torch.float32)
    assert not torch.equal(start.lm_head.weight, exported.lm_head.weight)


@pytest.mark.parametrize(
    ("counts", "dtype"),
    [((1, 2), "bfloat16"), pytest.param((1, 2, 3, 1), "float32", marks=pytest.mark.long)],
)
def test_another_number_of_ranks_goes_on_with_the_same_weights_and_moments(
    counts: tuple[int, ...], dtype: str, models: dict[str, Path], groups: list[Trajectories], tmp_path: Path
) -> None:
    """Each number of ranks takes a step. `lr` is small: the splits of a batch differ by rounding."""

    def config(ranks: int) -> RunConfig:
        base = settings(models["tied"], ranks)
        # Several parts: AdamW counts the steps of each.
        parts = {"dtype": dtype, "lr": 1e-4, "deepspeed": {"zero_optimization": {"sub_group_size": 20_000}}}
        return base.model_copy(update={"learning": base.learning.model_copy(update=parts)})

    states: list[dict[str, Any]] = []
    for number, ranks in enumerate(counts):
        with learner(config(ranks), worker=WholeStateRank) as workers:
            if number > 0:
                folder, saved_by = str(tmp_path / str(number - 1)), counts[number - 1]
                ray.get([worker.load.remote(folder, saved_by) for worker in workers])
                assert_equal_states(
                    ray.get([worker.whole_state.remote() for worker in workers])[0], states[-1]
                )
            batch = batch_of(groups, ranks, 256)
            assert ray.get([worker.step.remote(batch) for worker in workers])[0].skipped == 0
            states.append(ray.get([worker.whole_state.remote() for worker in workers])[0])
            ray.get([worker.save.remote(str(tmp_path / str(number))) for worker in workers])
    assert set(states[-1]["steps"]) == {len(counts)}
    assert len(states[-1]["steps"]) > 1
    with learner(config(1), worker=WholeStateRank) as (never_stopped,):
        for _ in counts:
            ray.get(never_stopped.step.remote(batch_of(groups, 1, 256)))
        expected = ray.get(never_stopped.whole_state.remote())
    for name, tensors in expected["tensors"].items():
        tolerance = 2e-3 if dtype == "float32" else 2e-2
        for kind in ("exp_avg", "exp_avg_sq"):
            scale = float(np.abs(tensors[kind]).max())
            np.testing.assert_allclose(
                states[-1]["tensors"][name][kind],
                tensors[kind],
                atol=tolerance * scale,
                err_msg=f"{name} {kind}",
            )


def assert_equal_states(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Bit for bit; the number of parts depends on the number of ranks."""
    assert set(found["steps"]) == set(expected["steps"])
    assert set(found["tensors"]) == set(expected["tensors"])
    for name, tensors in expected["tensors"].items():
        for kind, values in tensors.items():
            np.testing.assert_array_equal(found["tensors"][name][kind], values, err_msg=f"{name} {kind}")


def test_reference_model_is_held_only_when_asked_for(
    models: dict[str, Path], groups: list[Trajectories]
) -> None:
    batch = batch_of(groups, 1, 256)
    with learner(settings(models["untied"], kl_coef=0.1)) as (rank,):
        sums = ray.get(rank.step.remote(batch))
        moved = ray.get(rank.step.remote(batch))
    assert sums.kl == pytest.approx(0.0, abs=1e-6), (
        "before the first update policy and reference are the same"
    )
    assert moved.kl > 1e-4
    assert not settings(models["untied"]).needs_reference


def test_learner_rank_reads_the_score_at_eos(models: dict[str, Path], groups: list[Trajectories]) -> None:
    """`c_ref: exact` reads log pi_ref(z_c) where the score is read: after EOS, of finished samples only."""
    batch = batch_of(groups, 2, 64)
    model = Qwen2ForCausalLM.from_pretrained(models["untied"], dtype=torch.float32)
    with learner(
        settings(models["untied"], 2).model_copy(
            update={"loss": settings(models["untied"], c_ref="exact").loss}
        )
    ) as ranks:
        plan = batch.mini_batches[0].plan
        found = {
            k: v
            for part in ray.get([r.reference_z_logprobs.remote(batch.groups, plan, SAMPLES) for r in ranks])
            for k, v in part.items()
        }
    finished = np.concatenate([group.finished for group in groups])
    assert sorted(found) == np.flatnonzero(finished).tolist()
    for index, value in found.items():
        sample = groups[index // SAMPLES].sample(index % SAMPLES)
        tokens = torch.from_numpy(np.concatenate([sample.prompt_ids, sample.response_ids]).astype(np.int64))
        with torch.no_grad():
            assert value == pytest.approx(
                model(tokens[None]).logits[0, -1].log_softmax(-1)[Z_TOKEN].item(), abs=1e-4
            )


def checked_groups(groups: list[Trajectories], correct: int = 3) -> list[CheckedGroup]:
    """The groups with verdicts: every third sample is correct, or none of them."""
    checked = []
    for number, group in enumerate(groups):
        verdicts = [
            Verdict(Status.CORRECT if correct and (number * SAMPLES + i) % correct == 1 else Status.WRONG)
            for i in range(SAMPLES)
        ]
        problem = Problem.from_text(str(number), "p", "1")
        checked.append(CheckedGroup(problem, ray.put(group), None, group.summary(), verdicts))
    return checked


def driver_batch(
    config: RunConfig, groups: list[CheckedGroup], ranks: list[Any], streamed: int
) -> TrainBatch:
    """A batch as the driver makes it, once the ranks have streamed the first groups of it."""
    plan = StreamPlan(config, step=1)

    def stream(rounds: list[StreamedRound]) -> None:
        for part in rounds:
            ray.get([rank.stream.remote(part) for rank in ranks])

    for number in range(streamed):
        landed = to_batch(groups[number : number + 1])
        advantages = estimate_advantages(config, landed, None, 1)
        plan.add(number, landed, advantages, np.full(SAMPLES, C_REF, np.float32))
        while part := plan.next_round():
            stream([part])
    stream(plan.remaining_rounds())
    batch = to_batch(groups)
    advantages = estimate_advantages(config, batch, None, 1)
    c_ref = np.full(len(advantages), C_REF, np.float32)
    return make_train_batch(config, batch, advantages, c_ref, 1, plan.streamed)


def learning_with(config: RunConfig, alpha: float, mini_batches: int = 1) -> RunConfig:
    """Steps of the test's groups, in small micro-batches."""
    return config.model_copy(
        update={
            "rollout": config.rollout.model_copy(
                update={"prompts_per_step": GROUPS, "samples_per_prompt": SAMPLES}
            ),
            "learning": config.learning.model_copy(
                update={"tokens_per_micro_batch": 80, "mini_batches": mini_batches}
            ),
            "loss": config.loss.model_copy(update={"alpha": alpha}),
        }
    )


@pytest.mark.parametrize(("ranks", "kl_coef"), [pytest.param(1, 0.0, marks=pytest.mark.long), (2, 0.1)])
def test_streamed_loss_and_gradients_equal_those_of_the_whole_batch(
    ranks: int, kl_coef: float, models: dict[str, Path], groups: list[Trajectories], tmp_path: Path
) -> None:
    config = settings(models["untied"], ranks, kl_coef=kl_coef)
    with learner(config) as workers:

        def step(batch: TrainBatch) -> StepSums:
            return ray.get([worker.step.remote(batch) for worker in workers])[0]

        step(driver_batch(learning_with(config, 1.0), checked_groups(groups), workers, streamed=0))
        ray.get([worker.save.remote(str(tmp_path)) for worker in workers])  # away from the reference
        for alpha, correct, parts in ((0.0, 3, (GROUPS,)), (1.0, 3, (2, GROUPS)), (1.0, 0, (2,))):
            case, checked = learning_with(config, alpha), checked_groups(groups, correct)
            whole_sums, whole = gradients(workers, driver_batch(case, checked, workers, streamed=0))
            driver_batch(case, checked, workers, streamed=1)  # and abandoned
            for streamed in parts:
                batch = driver_batch(case, checked, workers, streamed)
                where = f"alpha {alpha}, every {correct}rd correct, {streamed} groups streamed"
                assert batch.streamed is not None, where
                sums, found = gradients(workers, batch)
                for name in ("policy_loss", "self_reward_loss", "total_loss", "kl"):
                    expected = sum(getattr(rank, name) for rank in whole_sums)
                    total = sum(getattr(rank, name) for rank in sums)
                    assert total == pytest.approx(expected, rel=1e-4, abs=1e-6), f"{name}, {where}"
                for name, gradient in whole.items():
                    np.testing.assert_allclose(
                        found[name], gradient, atol=2e-6, rtol=2e-4, err_msg=f"{name}, {where}"
                    )
            _, again = gradients(workers, driver_batch(case, checked, workers, streamed=0))
            for name, gradient in whole.items():
                np.testing.assert_array_equal(again[name], gradient, err_msg="nothing is left behind")
        case, checked, updates = learning_with(config, 1.0, mini_batches=2), checked_groups(groups), []
        for streamed in (0, 2):
            ray.get([worker.load.remote(str(tmp_path), ranks) for worker in workers])
            updates.append(step(driver_batch(case, checked, workers, streamed)))
        assert updates[1].grad_norm == pytest.approx(updates[0].grad_norm, rel=1e-3)
        assert updates[1].skipped == 0
        other = replace(driver_batch(case, checked, workers, 0), streamed=StreamedPart(1, {}))
        with pytest.raises(ray.exceptions.RayTaskError, match="has 1 streamed rounds, but this rank has"):
            step(other)


def test_a_step_with_a_number_that_is_not_finite_changes_nothing_on_any_rank(
    models: dict[str, Path], groups: list[Trajectories], tmp_path: Path
) -> None:
    config = settings(models["untied"], ranks=2)
    # The warm-up makes the rate 1e-2 in step 1, 1e10 in step 10^12, and 1e30 in step 10^32.
    rising = {"lr": 1e30, "warmup_steps": 10**32}
    config = config.model_copy(update={"learning": config.learning.model_copy(update=rising)})
    good = batch_of(groups, 2, 64)

    def with_first(values: np.ndarray, value: float) -> np.ndarray:
        changed = values.copy()
        changed[1] = value
        return changed

    def with_engine_logprob(value: float) -> TrainBatch:
        broken = pack(
            groups[0].prompt_ids.tolist(), [generated(groups[0], number) for number in range(SAMPLES)]
        )
        broken.logprobs[0] = value
        return replace(good, groups=[ray.put(broken), *good.groups[1:]])

    bad = {
        "the loss": replace(good, advantages=with_first(good.advantages, math.nan)),
        "the reference model's log-probs": replace(good, c_ref=with_first(good.c_ref, -math.inf)),
        "the engine's log-probs": with_engine_logprob(-math.inf),
    }
    with learner(config, worker=PoisonedRank) as ranks:

        def step(batch: TrainBatch) -> list[StepSums]:
            return ray.get([rank.step.remote(batch) for rank in ranks])

        step(good)
        ray.get([rank.save.remote(str(tmp_path)) for rank in ranks])
        for fault, batch in bad.items():
            sums = step(batch)
            assert {rank.skipped for rank in sums} == {1}, fault
            assert {rank.faults for rank in sums} == {sums[0].faults}, "the ranks agree"
            assert fault in sums[0].faults
            assert sums[0].grad_norm == math.inf
            assert sums[0].weights_finite
        ray.get(ranks[1].poison.remote())
        poisoned = step(good)
        assert {rank.faults for rank in poisoned} == {("the gradients",)}, "the loss is finite"
        assert math.isfinite(poisoned[1].total_loss)
        after = step(good)
        assert after[0].skipped == 0
        assert ray.get([rank.health.remote() for rank in ranks]) == [None, None]
        ray.get([rank.load.remote(str(tmp_path), 2) for rank in ranks])
        never_skipped = step(good)
        for found, expected in zip(after, never_skipped, strict=True):
            assert (found.total_loss, found.grad_norm) == (expected.total_loss, expected.grad_norm)

        # A rate of 1e10 leaves finite weights that are of no use, and one of 1e30 no finite norm.
        assert step(replace(good, step=10**12))[0].weights_finite
        problems = set(ray.get([rank.health.remote() for rank in ranks]))
        assert problems == {"the weights give log-probs that are not finite"}
        assert step(good)[0].faults[0] == "the policy's log-probs"
        ray.get([rank.load.remote(str(tmp_path), 2) for rank in ranks])
        assert not step(replace(good, step=10**32))[0].weights_finite
        assert set(ray.get([rank.health.remote() for rank in ranks])) == {"the weights are not finite"}


class OldLogProbsRank(LearnerRank):
    """A real rank that can compute the old policy's log-probs of the first mini-batch too."""

    def compute_old_logprobs(self) -> None:
        passes, accumulate = self.passes, self.passes.accumulate

        def with_old(batch: Any, mini: Any, groups: Any, old: Any, *others: Any, **more: Any) -> torch.Tensor:
            return accumulate(batch, mini, groups, old or passes.logprobs(mini, groups), *others, **more)

        passes.accumulate = with_old  # type: ignore[method-assign]


class WholeStateRank(LearnerRank):
    """A real rank that shows its model's float32 weights, AdamW's state, and the weights of the passes."""

    def whole_state(self) -> dict[str, Any]:
        from deepspeed import zero
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        tensors = {}
        for name, parameter in self.learner.model.model.named_parameters():
            with zero.GatheredParameters([parameter]):
                used = parameter.detach().float().clone()
            tensors[name] = {
                "used": used.numpy(),
                "fp32": safe_get_full_fp32_param(parameter).numpy().copy(),
                "exp_avg": safe_get_full_optimizer_state(parameter, "exp_avg").numpy().copy(),
                "exp_avg_sq": safe_get_full_optimizer_state(parameter, "exp_avg_sq").numpy().copy(),
            }
        state = self.learner.engine.optimizer.optimizer.state
        return {"tensors": tensors, "steps": [float(part["step"]) for part in state.values()]}


class PoisonedRank(LearnerRank):
    """A real rank whose gradients can be made NaN: no data does that and leaves the loss finite."""

    def poison(self) -> None:
        """The next backward pass gives NaN."""
        backward = self.learner.backward

        def poisoned(loss: torch.Tensor, last: bool) -> None:
            self.learner.backward = backward
            backward(loss * math.nan, last)

        self.learner.backward = poisoned


def generated(group: Trajectories, number: int) -> Generated:
    sample = group.sample(number)
    return Generated(
        sample.response_ids.tolist(),
        sample.logprobs.tolist(),
        bool(sample.finished),
        float(sample.z_logprob),
        [0] * len(sample.response_ids),
    )
