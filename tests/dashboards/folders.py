"""Folders of runs and sweeps as the driver writes them, and readers of the page that is made of them."""

import json
import math
import re

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from dashboards.report import write_report
from dashboards.report.figures import ranking, seed_groups
from dashboards.report.load import load_runs
from dashboards.report.payload import payload
from dashboards.report.samples import Scores, newest_scores

NASTY = (
    '</script><script>document.title="broken out"</script>'
    '<img src="https://example.com/x.png" onerror="alert(1)"> <b>&amp;'
)


def write_journal(folder, name, training=None, evaluations=None, status="FINISHED", set_name="test"):
    """`training` and `evaluations` are values by step."""
    folder.mkdir(parents=True, exist_ok=True)
    events = [{"event": "start", "time": 0, "run_name": name, "id": name}]
    events += [
        {"event": "step", "time": step, "step": step, "values": values}
        for step, values in (training or {}).items()
    ]
    for step, values in (evaluations or {}).items():
        values = {f"eval/{set_name}/{key}": value for key, value in values.items()}
        events.append(
            {
                "event": "evaluation",
                "time": step,
                "step": step,
                "set": set_name,
                "values": values,
                "table": "",
                "figure": None,
            }
        )
    events += [{"event": "status", "time": 9, "status": status}] if status else []
    (folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))


def write_config(folder, **settings):
    """A config.yaml of dotted settings."""
    tree: dict = {
        "run": {"name": folder.name, "dir": str(folder.parent), "steps": 60},
        "tracking": {"uri": None},
    }
    for key, value in settings.items():
        section, leaf = key.split("__")
        tree.setdefault(section, {})[leaf] = value
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(tree))


def write_samples(folder, rows, set_name="test", step=60):
    """`rows` of (status, score, finished), or whole dictionaries of columns."""
    defaults = {
        "problem": "1+1=",
        "reference": "2",
        "response": "\\boxed{2}",
        "answer": "2",
        "kind": None,
        "tokens": 7,
    }
    table = []
    for number, row in enumerate(rows):
        row = row if isinstance(row, dict) else dict(zip(("status", "score", "finished"), row, strict=True))
        table.append(defaults | {"problem_id": str(number // 8), "sample": number % 8} | row)
    (folder / "evaluations").mkdir(parents=True, exist_ok=True)
    types = {"sample": pa.int32(), "score": pa.float32(), "finished": pa.bool_(), "tokens": pa.int32()}
    schema = pa.schema([(name, types.get(name, pa.string())) for name in table[0]])
    pq.write_table(
        pa.Table.from_pylist(table, schema), folder / "evaluations" / f"{set_name}-{step:06d}.parquet"
    )


def training_values(random, step, skill, score_skill):
    """One step's metrics of a made-up run that learns; no scores where `score_skill` is None."""
    noise = lambda size: float(random.normal(0, size))  # noqa: E731
    values = {
        "train/accuracy": 0.25 + skill * (1 - math.exp(-step / 25)) + noise(0.03),
        "train/response_tokens": 44 + 0.2 * step + noise(2),
        "train/finished_share": 0.97 + noise(0.01),
        "loss/policy": noise(0.01),
        "loss/total": 0.25 * math.exp(-step / 30) + noise(0.015),
        "policy/kl": 0.0,
        "policy/mismatch_kl": abs(noise(2e-5)),
        "policy/mismatch_mean": 1e-3 + abs(noise(1e-4)),
        "policy/mismatch_max": 0.05 + abs(noise(0.02)),
        "policy/entropy": 0.6 * math.exp(-step / 80) + noise(0.01),
        "policy/clip_share": 0.01,
        "policy/grad_norm": 0.4 + abs(noise(0.1)),
        "time/rollout": 1.1 + abs(noise(0.1)),
        "time/verify": 0.1,
        "time/learn": 0.7 + abs(noise(0.05)),
        "time/sync": 0.08,
        "time/step": 2.05 + abs(noise(0.1)),
        "throughput/samples_per_s": 65 + noise(3),
        "throughput/tokens_per_s": 3300 + noise(90),
    }
    if score_skill is not None:
        rise = 1 - math.exp(-max(step - 30, 0) / 15)
        values |= {
            "self_reward/f1": 0.45 + score_skill * rise + noise(0.03),
            "loss/self_reward": 0.4 - 0.2 * rise + noise(0.02),
        }
    return values


def evaluation_values(accuracy, f1):
    return {
        "accuracy": accuracy,
        "finished_share": 0.98,
        "self_verification_f1": f1,
        "accuracy_correct": f1,
        "accuracy_wrong": f1,
        "auroc": f1 + 0.1,
        "auroc_within_problem": f1 + 0.05,
        "auroc_problem_only": 0.6,
        "mixed_problems": 20.0,
        "ece": 0.08,
        "maj_at_k": accuracy + 0.05,
        "weighted_at_k": accuracy + 0.08,
        "response_tokens": 50.0,
        "unverified": 1.0,
    }


def made_up_samples(random, count, accuracy, spread):
    rows = []
    for number in range(count):
        a, b = (int(value) for value in random.integers(11, 49, 2))
        right = random.random() < accuracy
        finished = random.random() > 0.03
        answer = str(min(a, b) if right else min(a, b) + 1)
        tries = ";".join(
            f"{int(x)}+{int(y)}={int(x + y)}>{a + b}"
            for x, y in random.integers(11, 49, (int(random.integers(0, 5)), 2))
        )
        response = (
            NASTY
            if number == 3
            else f"{tries};{answer}+{max(a, b)}={a + b};\\boxed{{{answer}}}"
            if finished
            else tries * 3
        )
        status = (
            "timeout" if number == 5 else "no_answer" if not finished else "correct" if right else "wrong"
        )
        score = float(random.normal(0.5 + spread * (1 if right else -1), 0.22)) if finished else math.nan
        rows.append(
            {
                "problem": f"a<b in {{{a},{b},{a + 3},{b + 5}}}, a+b={a + b}; a=?",
                "reference": str(min(a, b)),
                "response": response,
                "status": status,
                "answer": answer if finished else None,
                "score": score,
                "finished": finished,
                "tokens": len(response) // 2,
            }
        )
    return rows


def write_sweep(
    folder, betas=(0.05, 0.1, 0.2), alphas=(0.1, 0.5, 1.0), seeds=(0, 1), steps=60, branch=30, samples=240
):
    """A sweep in which a trial failed, one was pruned, one is running and one is pending; a trunk a seed."""
    random = np.random.default_rng(7)
    trials, objectives = [], {}
    for seed in seeds:
        trunk = folder / "trunks" / f"t{seed}"
        values = {step: training_values(random, step, 0.4, None) for step in range(1, branch + 1)}
        base = {"accuracy": 0.25 + 0.01 * seed, "response_tokens": 44.0, "maj_at_k": 0.3}
        write_journal(trunk, trunk.name, values, {0: base})
        write_config(trunk, run__seed=seed, loss__beta_v=0.1, loss__alpha=0.5)
    for beta in betas:
        for alpha in alphas:
            for seed in seeds:
                place = (betas.index(beta), alphas.index(alpha), seed)
                status = {
                    (0, 2, 1): "failed",
                    (2, 2, 0): "failed",
                    (2, 2, 1): "pending",
                    (0, 0, 1): "pruned",
                    (2, 0, 1): "running",
                }.get(place, "finished")
                name = f"beta_v={beta},alpha={alpha},seed={seed}"
                last = {"failed": 36, "pruned": 45, "running": 50, "pending": 0}.get(status, steps)
                quality = (
                    0.1
                    - 0.5 * abs(math.log10(beta / 0.1)) * 0.4
                    + 0.06 * (alpha == 0.5)
                    + float(random.normal(0, 0.01))
                )
                figures = evaluation_values(0.55 + quality, 0.62 + quality) if last >= 45 else {}
                value = (figures["accuracy"] + figures["self_verification_f1"]) / 2 if figures else None
                error = (
                    "RunError: a learner rank died 3 times; see worker-<7>.err"
                    if status == "failed"
                    else None
                )
                trials.append(
                    {
                        "name": name,
                        "folder": f"trials/{name}",
                        "point": {"loss.beta_v": beta, "loss.alpha": alpha},
                        "seed": seed,
                        "status": status,
                        "step": last,
                        "steps": steps,
                        "objective": value,
                        "error": error,
                        "mlflow_run_id": None,
                        "trunk": f"t{seed}",
                        "metrics": {key: figures.get(key) for key in evaluation_values(0, 0)}
                        if figures
                        else {},
                    }
                )
                if status == "pending":
                    continue
                if status == "finished":
                    objectives.setdefault((beta, alpha), []).append((value, name))
                trial = folder / "trials" / name
                curves = {
                    step: training_values(random, step, 0.4 + quality, 0.2 + quality)
                    for step in range(branch + 1, last + 1)
                }
                grown = {
                    step: evaluation_values(
                        0.45 + (0.1 + quality) * (step - 30) / 30, 0.5 + (0.12 + quality) * (step - 30) / 30
                    )
                    for step in range(40, last + 1, 10)
                }
                write_journal(trial, name, curves, grown, None if status == "running" else "FINISHED")
                write_config(trial, run__seed=seed, loss__beta_v=beta, loss__alpha=alpha)
                (trial / "branch.json").write_text(
                    json.dumps({"trunk": f"../../trunks/t{seed}", "step": branch, "trunk_run_id": "x"})
                )
                if figures:
                    write_samples(
                        trial,
                        made_up_samples(random, samples, figures["accuracy"], 0.1 + quality),
                        step=last // 10 * 10,
                    )
    means = {point: sum(value for value, _ in found) / len(found) for point, found in objectives.items()}
    best = max(means, key=means.__getitem__)
    results = {
        "name": folder.name,
        "metric": "(accuracy + self_verification_f1) / 2",
        "set": "test",
        "keys": ["loss.beta_v", "loss.alpha"],
        "trials": trials,
        "trunks": [
            {
                "name": f"t{seed}",
                "folder": f"trunks/t{seed}",
                "steps": branch,
                "status": "finished",
                "error": None,
            }
            for seed in seeds
        ],
        "best": {
            "point": {"loss.beta_v": best[0], "loss.alpha": best[1]},
            "objective": means[best],
            "seeds": len(objectives[best]),
            "trial": max(objectives[best])[1],
        },
        "work": {"steps_trained": 150, "steps_independent": 240, "share": 0.625},
        "seconds": 512.0,
    }
    (folder / "results.json").write_text(json.dumps(results))
    return results


def scores_of(*rows):
    """Samples from (status, score) pairs; a score of None is that of an unfinished one."""
    score = np.array([math.nan if value is None else value for _, value in rows], float)
    return Scores(None, "test", 1, [status for status, _ in rows], score, ~np.isnan(score))


def html_of(folders, tmp_path):
    write_report(folders, tmp_path / "report.html")
    return (tmp_path / "report.html").read_text()


def embedded(html):
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', html, re.S)[1])


def visible_text(html):
    """The page's text without scripts and styles."""
    without = re.sub(r"<(script|style)\b.*?</\1>", " ", html, flags=re.S)
    return re.sub(r"\s+", " ", re.sub(r"<[^>]*>", " ", without))


def payload_of(*folders):
    """What the page of these folders draws, before it is rounded."""
    comparison = load_runs(folders)
    newest = {number: newest_scores(run) for number, run in enumerate(comparison.runs)}
    scores = {number: each for number, each in newest.items() if each is not None}
    return payload(comparison, seed_groups(comparison), ranking(comparison), scores)[0]
