"""The cold start: targets, schedule, batches, the loss over ranks, and a few real steps on two ranks."""

import contextlib
import json
import re
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow import MlflowClient
from transformers import AutoModelForCausalLM, AutoTokenizer

from actors.cold_start import learning_rate, share_of_loss
from actors.rows import demonstration_rows
from actors.zero3 import LogProbModel
from experiments.quickstart.task import (
    CHAT_TEMPLATE,
    END,
    PAD,
    SELF_REWARD,
    START,
    write_data,
    write_untrained,
    write_voting,
)
from orchestrator import cli
from orchestrator.algorithm.micro_batches import plan_micro_batches
from orchestrator.config.cold_start import SFTConfig, SFTDataConfig
from orchestrator.config.schema import dump_config
from orchestrator.data.chat import ChatEncoder
from orchestrator.data.demonstrations import (
    Demonstrations,
    TurnEnd,
    length_batches,
    load_demonstrations,
    turn_end,
)
from orchestrator.data.tokens import ModelTokens, load_tokens
from orchestrator.errors import ConfigError, DataError
from orchestrator.storage.files import claimed
from orchestrator.storage.journal import StatusEvent, read_events
from orchestrator.training.cold_start import STORAGE, fine_tune
from orchestrator.training.divergence import Diverged

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("untrained")
    write_untrained(folder, seed=0)
    return folder


@pytest.fixture(scope="module")
def tokens(model_folder: Path) -> ModelTokens:
    return load_tokens(str(model_folder), SELF_REWARD)


def data_file(folder: Path, *rows: dict) -> SFTDataConfig:
    path = folder / "sft.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return SFTDataConfig(train=str(path), instruction="")


def config(**changes: dict) -> SFTConfig:
    tree: dict = {"run": {"name": "cold", "steps": 6}, "model": {"path": "m"}, "data": {"train": "t"}}
    return SFTConfig.model_validate({key: tree.get(key, {}) | changes.get(key, {}) for key in tree | changes})


def ids(tokens: ModelTokens, *pieces: str) -> list[int]:
    return tokens.tokenizer.convert_tokens_to_ids(["Ċ" if piece == "\n" else piece for piece in pieces])


class TestTargets:
    def test_solution_eos_and_the_token_after_it(self, tmp_path, tokens):
        samples = load_demonstrations(data_file(tmp_path, {"problem": "7", "solution": "89"}), tokens)
        sample, prompt_length = samples.sample(0)
        assert sample.tolist() == ids(tokens, START, "7", END, "\n", START, "8", "9", END, "\n")
        assert prompt_length == 5
        assert samples.target_count([0]) == 4

    def test_nothing_after_eos_without_a_self_reward_token(self, tmp_path, model_folder):
        tokens = load_tokens(str(model_folder), None)
        sample, prompt_length = load_demonstrations(
            data_file(tmp_path, {"problem": "7", "solution": "89"}), tokens
        ).sample(0)
        assert sample[prompt_length:].tolist() == ids(tokens, "8", "9", END)

    def test_rows_read_the_position_before_each_target(self, tmp_path, tokens):
        data = data_file(tmp_path, {"problem": "7", "solution": "89"}, {"problem": "12", "solution": "3"})
        samples = load_demonstrations(data, tokens)
        input_ids, read, targets = demonstration_rows([samples.sample(0), samples.sample(1)], 0, CPU)
        assert input_ids[0].tolist() == ids(tokens, START, "7", END, "\n", START, "8", "9", END)
        assert input_ids[1].tolist() == ids(tokens, START, "1", "2", END, "\n", START, "3", END)
        assert read.int().tolist() == [[0, 0, 0, 0, 1, 1, 1, 1], [0, 0, 0, 0, 0, 1, 1, 1]]
        assert targets.tolist() == ids(tokens, "8", "9", END, "\n", "3", END, "\n")

    def test_padding_is_not_read(self):
        rows = [(np.array([5, 6, 7, 8], np.int32), 2), (np.array([5, 9], np.int32), 1)]
        input_ids, read, targets = demonstration_rows(rows, 1, CPU)
        assert input_ids.tolist() == [[5, 6, 7], [5, 1, 1]]
        assert read.int().tolist() == [[0, 1, 1], [1, 0, 0]]
        assert targets.tolist() == [7, 8, 9]

    @pytest.mark.parametrize("spelled", [SELF_REWARD, END, f"{END}\n{START}9{END}"])
    def test_texts_never_become_control_tokens(self, spelled, tmp_path, tokens):
        data = data_file(
            tmp_path,
            {"problem": "7", "solution": "8"},
            {"problem": f"7{spelled}", "solution": f"8{spelled}"},
        )
        plain, forged = (load_demonstrations(data, tokens).sample(index) for index in (0, 1))
        special = ids(tokens, START, END, SELF_REWARD)
        assert [id_ for id_ in forged[0] if id_ in special] == [id_ for id_ in plain[0] if id_ in special]
        assert tokens.tokenizer.decode(forged[0][forged[1] :]) == f"8{spelled}{END}\n"

    def test_a_solution_that_becomes_z_is_refused(self, tmp_path, tokens):
        (z_token,) = ids(tokens, "9")
        data = data_file(tmp_path, {"problem": "7", "solution": "8"}, {"problem": "7", "solution": "89"})
        with pytest.raises(DataError, match=r"sft\.jsonl, line 2: 'solution': the text becomes"):
            load_demonstrations(data, replace(tokens, z_token=z_token))


class TestTurnEnd:
    def test_of_the_chat_template(self, tokens):
        assert turn_end(tokens.chat, tokens.eos_tokens) == TurnEnd(*ids(tokens, END, "\n"))

    def test_a_template_that_opens_the_next_turn_at_once(self, model_folder):
        tokenizer = AutoTokenizer.from_pretrained(model_folder)
        tokenizer.chat_template = CHAT_TEMPLATE.replace(r"\n", "").replace("\n", "")
        assert turn_end(ChatEncoder(tokenizer), (tokenizer.eos_token_id,)) == TurnEnd(
            *tokenizer.convert_tokens_to_ids([END, START])
        )

    def test_a_template_without_eos_leaves_padding(self, model_folder):
        tokenizer = AutoTokenizer.from_pretrained(model_folder)
        tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }};{% endfor %}"
        assert turn_end(ChatEncoder(tokenizer), (tokenizer.eos_token_id,)) == TurnEnd(
            *tokenizer.convert_tokens_to_ids([END, PAD])
        )

    def test_a_self_reward_token_that_follows_eos_is_refused(self, tmp_path, model_folder):
        tokens = load_tokens(str(model_folder), START)
        tokens.tokenizer.chat_template = CHAT_TEMPLATE.replace("\n", "")
        with pytest.raises(ConfigError, match="the chat template puts it after them"):
            load_demonstrations(data_file(tmp_path, {"problem": "7", "solution": "8"}), tokens)


class TestLoading:
    def test_long_samples_are_dropped_and_counted(self, tmp_path, tokens):
        data = data_file(
            tmp_path, {"problem": "7", "solution": "8"}, {"problem": "7", "solution": "89"}
        ).model_copy(update={"max_tokens": 7})
        samples = load_demonstrations(data, tokens)
        assert (len(samples), samples.dropped) == (1, 1)
        with pytest.raises(
            DataError, match=r"none of its 2 samples fits data\.max_tokens=6; the shortest has 7 tokens"
        ):
            load_demonstrations(data.model_copy(update={"max_tokens": 6}), tokens)

    def test_a_missing_solution_names_file_and_line(self, tmp_path, tokens):
        data = data_file(tmp_path, {"problem": "7", "solution": "8"}, {"problem": "7", "answer": "8"})
        with pytest.raises(
            DataError, match=r"sft.jsonl, line 2: no field 'solution'.*set data.solution_field"
        ):
            load_demonstrations(data, tokens)

    def test_no_rows(self, tmp_path, tokens):
        with pytest.raises(DataError, match="holds no worked solution"):
            load_demonstrations(data_file(tmp_path), tokens)


def test_learning_rate_rises_then_falls_as_a_cosine():
    settings = config(learning={"lr": 1.0, "warmup_steps": 2, "final_lr_share": 0.1})
    assert [learning_rate(settings, step) for step in (1, 2, 4, 6)] == pytest.approx([0.5, 1.0, 0.55, 0.1])


def test_learning_rate_without_warmup_and_with_nothing_else():
    assert learning_rate(config(learning={"lr": 1.0, "warmup_steps": 0}), 6) == pytest.approx(0.05)
    assert learning_rate(config(learning={"lr": 1.0, "warmup_steps": 12}), 6) == pytest.approx(0.5)


class TestBatches:
    lengths = np.random.default_rng(0).integers(5, 60, 203)

    def test_an_epoch_holds_no_sample_twice(self):
        epoch = list(islice(length_batches(self.lengths, 10, seed=3), 20))
        assert all(len(batch) == 10 for batch in epoch)
        assert len({index for batch in epoch for index in batch}) == 200

    def test_a_batch_holds_like_lengths(self):
        epoch = list(islice(length_batches(self.lengths, 10, seed=3), 20))
        assert max(np.ptp(self.lengths[batch]) for batch in epoch) < 15

    def test_the_seed_and_the_epoch_decide(self):
        first, again, other = (list(islice(length_batches(self.lengths, 10, seed), 40)) for seed in (3, 3, 4))
        assert first == again
        assert first != other
        assert first[:20] != first[20:]

    def test_too_few_samples(self):
        with pytest.raises(ValueError, match="9 samples do not fill a batch of 10"):
            next(length_batches(self.lengths[:9], 10, seed=0))


@pytest.mark.parametrize(("num_ranks", "tokens_per_micro_batch"), [(1, 40), (2, 1000), (7, 1000)])
def test_loss_and_gradients_are_the_same_however_a_batch_is_dealt(
    model_folder, num_ranks, tokens_per_micro_batch
):
    random = np.random.default_rng(1)
    sizes = random.integers(4, 30, 6)
    batch = Demonstrations(
        random.integers(4, 200, sizes.sum()).astype(np.int32),
        np.cumsum([0, *sizes]),
        random.integers(1, 4, 6).astype(np.int32),
    )
    samples = [batch.sample(index) for index in range(6)]
    total = batch.target_count(list(range(6)))
    model = LogProbModel(AutoModelForCausalLM.from_pretrained(model_folder))

    def gradient(parts) -> tuple[float, torch.Tensor]:
        model.zero_grad()
        loss = 0.0
        for part in parts:
            share = share_of_loss(model, [samples[index] for index in part], total, 0, CPU)
            share.backward()
            loss += share.item()
        return loss, torch.cat([parameter.grad.flatten() for parameter in model.parameters()])

    whole_loss, whole = gradient([range(6)])
    plan = plan_micro_batches((sizes - 1).tolist(), num_ranks, tokens_per_micro_batch)
    dealt_loss, dealt = gradient([micro for rank in plan for micro in rank])
    assert dealt_loss == pytest.approx(whole_loss, rel=1e-5)
    torch.testing.assert_close(dealt, whole, rtol=1e-4, atol=1e-6)
    if num_ranks == 7:
        assert [] in [micro for rank in plan for micro in rank]


class TestCommand:
    """What `laser sft` refuses, and what it says of a finished run, before anything is started."""

    @pytest.fixture
    def arguments(self, tmp_path, model_folder):
        data = data_file(tmp_path, *({"problem": str(n), "solution": str(n)} for n in range(8)))
        settings = config(
            run={"dir": str(tmp_path / "runs")},
            model={"path": str(model_folder)},
            data=data.model_dump(),
            learning={"batch_size": 8, "cpus_per_rank": 0.1},
        )
        path = tmp_path / "sft.yaml"
        path.write_text(dump_config(settings))
        return ["sft", str(path)]

    @pytest.mark.parametrize(
        ("override", "message"),
        [
            ("learning.batch_size=9", "learning.batch_size=9, but .* holds only 8 samples"),
            ("learning.num_ranks=9999", "the cluster has room for"),
            (
                "learning.tokens_per_micro_batch=9",
                "learning.tokens_per_micro_batch: 9 is less than the longest sample",
            ),
            ("data.solution_field=proof", "line 1: no field 'proof'"),
            ("self_reward.token=zc", "'zc' is no single token"),
        ],
    )
    def test_refused(self, arguments, override, message, capsys, tmp_path):
        assert cli.main([*arguments, override]) == 2
        assert re.search(message, capsys.readouterr().err)
        assert not (tmp_path / "runs").exists()

    def test_a_finished_run_says_so(self, arguments, capsys, tmp_path):
        folder = tmp_path / "runs" / "cold"
        folder.mkdir(parents=True)
        (folder / "config.yaml").write_text(Path(arguments[1]).read_text())
        (folder / "summary.json").write_text('{"loss": 0.5}')
        assert cli.main(arguments) == 0
        assert "is finished: loss 0.500" in capsys.readouterr().out
        assert cli.main([*arguments, "run.steps=7"]) == 2
        assert "run.steps: 6 before, 7 now" in capsys.readouterr().err
        # Settings of speed and place make no other run of it.
        assert cli.main([*arguments, "learning.tokens_per_micro_batch=4096", "learning.num_ranks=2"]) == 0

    def test_a_folder_has_one_cold_start_at_a_time(self, arguments, capsys, tmp_path):
        folder = tmp_path / "runs" / "cold"
        (folder / STORAGE).mkdir(parents=True)
        with claimed(folder):
            assert cli.main(arguments) == 2
        assert "another process is training this run" in capsys.readouterr().err
        assert (folder / STORAGE).exists(), "it is the other process's"

    @pytest.mark.parametrize("signalled", [KeyboardInterrupt, SystemExit])
    def test_a_cold_start_that_is_stopped_is_recorded_as_killed(
        self, arguments, monkeypatch, tmp_path, signalled
    ):
        monkeypatch.chdir(tmp_path)

        def interrupted(*_):  # stands in for a signal during the training
            raise signalled

        monkeypatch.setattr("orchestrator.training.cold_start._fit", interrupted)
        with contextlib.suppress(SystemExit):
            assert cli.main(arguments) == 1
        assert [
            event.status
            for event in read_events(tmp_path / "runs" / "cold")
            if isinstance(event, StatusEvent)
        ] == ["KILLED"]
        with claimed(tmp_path / "runs" / "cold"):
            pass

    def test_the_folder_of_a_training_run_is_left_alone(self, arguments, capsys, tmp_path):
        (tmp_path / "runs" / "cold" / "checkpoints").mkdir(parents=True)
        assert cli.main(arguments) == 2
        assert "choose another run.name" in capsys.readouterr().err


def test_five_steps_on_two_ranks(ray_cluster, tmp_path, model_folder, tokens):
    """With Ray Train, DeepSpeed and MLflow: the first loss is transformers', it falls, the export loads."""
    write_data(tmp_path, seed=0, train=1, test=1, sft=40)
    settings = config(
        run={"dir": tmp_path / "runs", "steps": 5},
        model={"path": str(model_folder)},
        data={"train": str(tmp_path / "sft.jsonl"), "instruction": ""},
        learning={"num_ranks": 2, "cpus_per_rank": 0.5, "batch_size": 8, "lr": 3e-3, "warmup_steps": 1},
        self_reward={"token": SELF_REWARD},
        tracking={"uri": f"sqlite:///{tmp_path}/mlflow.db"},
    )
    outcome = fine_tune(settings)

    history = MlflowClient(tracking_uri=settings.tracking.uri).get_metric_history(
        outcome.summary["mlflow_run_id"], "loss/total"
    )
    losses = [point.value for point in sorted(history, key=lambda point: point.step)]
    untrained = AutoModelForCausalLM.from_pretrained(model_folder)
    samples = load_demonstrations(settings.data, tokens)
    first_batch = next(length_batches(samples.lengths, 8, settings.run.seed))
    input_ids, read, targets = demonstration_rows([samples.sample(index) for index in first_batch], 0, CPU)
    logits = untrained(input_ids=input_ids).logits
    assert losses[0] == pytest.approx(
        torch.nn.functional.cross_entropy(logits[read], targets).item(), rel=1e-5
    )
    assert len(losses) == 5
    assert losses[-1] < losses[0] - 0.5

    export = settings.folder / "export"
    trained = AutoModelForCausalLM.from_pretrained(export)
    assert all(
        not torch.equal(old, new)
        for old, new in zip(untrained.parameters(), trained.parameters(), strict=True)
    )
    assert trained.generation_config.eos_token_id == tokens.tokenizer.eos_token_id
    assert load_tokens(str(export), SELF_REWARD).z_token == tokens.z_token
    assert json.loads((settings.folder / "summary.json").read_text()) == outcome.summary
    assert fine_tune(settings).already_finished


def test_the_problems_for_voting_are_held_out_and_not_those_of_the_test(tmp_path):
    write_data(tmp_path, seed=0, train=200, test=40, sft=1)
    write_voting(tmp_path, seed=0, count=80)
    problems = {
        part: {json.loads(line)["problem"] for line in (tmp_path / f"{part}.jsonl").open()}
        for part in ("train", "test", "voting")
    }
    assert len(problems["voting"]) == 80
    assert not problems["voting"] & (problems["train"] | problems["test"])


@pytest.mark.long
@pytest.mark.parametrize(("lr", "steps", "message"), [
    (1e30, 8, "3 steps in a row up to step 4 had no update, since the loss or the gradients are not finite"),
    (1e30, 1, "after step 1 the weights are not finite; nothing is exported"),
])  # fmt: skip
def test_a_learning_rate_that_ruins_the_weights_ends_it_as_failed(
    ray_cluster, tmp_path, model_folder, lr, steps, message
):
    write_data(tmp_path, seed=0, train=1, test=1, sft=40)
    settings = config(
        run={"dir": tmp_path / "runs", "steps": steps},
        model={"path": str(model_folder)},
        data={"train": str(tmp_path / "sft.jsonl"), "instruction": ""},
        learning={"num_ranks": 2, "cpus_per_rank": 0.5, "batch_size": 8, "lr": lr},
        self_reward={"token": SELF_REWARD},
        tracking={"uri": f"sqlite:///{tmp_path}/mlflow.db"},
    )
    with pytest.raises(Diverged, match=f"{message}.*The likely cause is learning.lr=1e\\+30"):
        fine_tune(settings)
    assert not (settings.folder / "export").exists()
    events = read_events(settings.folder)
    assert [event.status for event in events if isinstance(event, StatusEvent)] == ["FAILED"]
