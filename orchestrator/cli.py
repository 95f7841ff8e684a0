"""The `laser` command: a thin layer that reads arguments, calls the library, and turns its errors into messages.

Exit status: 0 done, 2 refused before anything was started, 1 failed while running.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from orchestrator.errors import LaserError, RunError

if TYPE_CHECKING:
    from orchestrator.jobs.client import Cluster


def main(arguments: Sequence[str] | None = None) -> int:
    parser = _parser()
    options, rest = parser.parse_known_args(arguments)
    # argparse takes all settings from one place; they may stand on both sides of an option.
    if any(setting.startswith("-") for setting in rest) or (rest and not hasattr(options, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides += rest
    try:
        return options.command(options)
    except RunError as error:
        print(f"laser {options.name}: {error}", file=sys.stderr)
        return 1
    except LaserError as error:
        print(f"laser {options.name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            f"\nlaser {options.name}: interrupted; the same command continues from the last checkpoint",
            file=sys.stderr,
        )
        return 1


def _train(options: argparse.Namespace) -> int:
    from orchestrator.config.training import RunConfig, load_config

    config = load_config(options.config, options.overrides, RunConfig)
    from orchestrator.training.run import train

    outcome = train(config)
    if outcome.already_finished:
        print(
            f"{config.folder} is finished: {outcome.summary['steps']} steps. Raise run.steps to go on, or choose another run.name."
        )
    from orchestrator.tracking.address import tracking_uri
    from orchestrator.training.show import show_summary

    show_summary(outcome.summary, config.folder, tracking_uri(config.tracking.uri, config.run.dir))
    return 0


def _replay(options: argparse.Namespace) -> int:
    from orchestrator.config.training import RunConfig, load_config

    config = load_config(options.config, options.overrides, RunConfig)
    from orchestrator.training.replay import replay

    replayed = replay(config, Path(options.rollouts))
    sums = replayed.sums
    print(
        f"step {replayed.step}: {replayed.samples} samples, {sums.tokens} tokens, under {config.model.path}"
    )
    print(
        f"  loss/total {sums.total_loss:.6f}  loss/policy {sums.policy_loss:.6f}  loss/self_reward {sums.self_reward_loss:.6f}"
    )
    print(
        f"  gradient norm {replayed.grad_norm:.6f}  largest |engine - learner| log-prob {sums.mismatch_max:.6f}"
    )
    return 0


def _sft(options: argparse.Namespace) -> int:
    from orchestrator.config.cold_start import SFTConfig
    from orchestrator.config.training import load_config

    config = load_config(options.config, options.overrides, SFTConfig)
    from orchestrator.training.cold_start import train

    outcome = train(config)
    state = "is finished" if outcome.already_finished else "done"
    print(
        f"{config.folder} {state}: loss {outcome.summary['loss']:.3f}. Start training with model.path={config.folder / 'export'}"
    )
    return 0


def _sweep(options: argparse.Namespace) -> int:
    from orchestrator.config.sweep import base_config, load_sweep

    config = load_sweep(options.config, options.overrides)
    base = base_config(config)
    if options.plan:
        from orchestrator.sweeps.plan import Plan
        from orchestrator.sweeps.progress import show_plan

        show_plan(Plan(config, base))
        return 0
    from orchestrator.sweeps.progress import show_outcome
    from orchestrator.sweeps.sweep import sweep
    from orchestrator.tracking.address import tracking_command, tracking_uri

    outcome = sweep(config)
    show_outcome(
        outcome,
        list(config.space),
        tracking_command(tracking_uri(base.tracking.uri, base.run.dir), outcome.folder),
    )
    if not outcome.failed:
        return 0
    print(
        f"laser sweep: {len(outcome.failed)} of {len(outcome.trials)} trials failed; the same command tries them again",
        file=sys.stderr,
    )
    return 1


def _submit(options: argparse.Namespace) -> int:
    from orchestrator.jobs.submission import submit

    cluster, job_id = submit(
        Path(options.config),
        options.overrides,
        options.address,
        options.storage,
        check_placement=not options.no_placement_check,
    )
    return 0 if options.detach else _follow(options, cluster, job_id)


def _jobs_list(options: argparse.Namespace) -> int:
    from orchestrator.jobs.client import Cluster
    from orchestrator.jobs.show import show_jobs

    show_jobs(Cluster(options.address).jobs())
    return 0


def _jobs_status(options: argparse.Namespace) -> int:
    from orchestrator.jobs.client import Cluster
    from orchestrator.jobs.show import show_job

    show_job(Cluster(options.address).find(options.job))
    return 0


def _jobs_logs(options: argparse.Namespace) -> int:
    from orchestrator.jobs.client import Cluster

    cluster = Cluster(options.address)
    job_id = cluster.find(options.job).submission_id
    if options.follow:
        return _follow(options, cluster, job_id)
    print(cluster.log(job_id), end="")
    return 0


def _jobs_stop(options: argparse.Namespace) -> int:
    from orchestrator.jobs.client import Cluster
    from orchestrator.jobs.following import stop

    stop(Cluster(options.address), options.job)
    return 0


def _follow(options: argparse.Namespace, cluster: "Cluster", job_id: str) -> int:
    from orchestrator.jobs.following import follow
    from orchestrator.jobs.submission import commands

    try:
        follow(cluster, cluster.job(job_id))
    except KeyboardInterrupt:
        print(
            "\n".join([f"\nlaser {options.name}: {job_id} goes on without us", *commands(cluster, job_id)]),
            file=sys.stderr,
        )
        return 1
    return 0


def _job(options: argparse.Namespace) -> int:
    from orchestrator.jobs.unpack import unpack

    return main(unpack())


def _report(options: argparse.Namespace) -> int:
    from dashboards.report import write_report

    write_report(options.runs, options.output, options.title)
    print(f"{options.output} written: open it in a browser")
    return 0


def _serve(options: argparse.Namespace) -> int:
    from orchestrator.config.serving import serve_config

    given = {
        "host": options.host,
        "port": options.port,
        "keys_file": options.keys_file,
        "follow": options.follow or None,
    }
    config = serve_config(
        options.model, {key: value for key, value in given.items() if value is not None}, options.overrides
    )
    from orchestrator.serving.launch import Service

    Service(config).run()
    return 0


def _eval(options: argparse.Namespace) -> int:
    from orchestrator.evaluation.run import evaluate, load_eval
    from orchestrator.evaluation.show import show_results
    from orchestrator.tracking.address import tracking_command, tracking_uri

    given = {
        "model": options.model,
        "data": options.data,
        "samples": options.samples,
        "folder": options.output,
    }
    settings = {key: value for key, value in given.items() if value is not None}
    config = load_eval(None if options.config is None else Path(options.config), settings, options.overrides)
    results = evaluate(config)
    show_results(results)
    print(f"curves    {tracking_command(tracking_uri(config.tracking.uri, config.dir), results.folder)}")
    return 0


def _check(options: argparse.Namespace) -> int:
    from orchestrator.config.training import RunConfig, load_config

    config = load_config(options.config, options.overrides, RunConfig)
    from orchestrator.planning.check import check

    check(config, strict=options.strict, measured=options.measured)
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from orchestrator.planning.doctor import doctor

    return 0 if doctor() else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="laser", description="LaSeR: reinforcement learning with last-token self-rewarding, on Ray."
    )
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    # What Ray runs for a submitted job. Without a help text, `laser --help` does not list it.
    commands.add_parser("job").set_defaults(command=_job, name="job")

    def add(name: str, run: Callable[[argparse.Namespace], int], help_text: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=help_text, description=help_text)
        command.set_defaults(command=run, name=name)
        return command

    train = add("train", _train, "train a run; the same command again resumes it")
    train.add_argument(
        "config", metavar="CONFIG", help="YAML configuration, such as experiments/quickstart.yaml"
    )
    _add_overrides(train, "settings that replace the file's, such as loss.alpha=0.5")

    sft = add("sft", _sft, "cold start: train on worked solutions before reinforcement learning")
    sft.add_argument("config", metavar="CONFIG", help="YAML configuration")
    _add_overrides(sft, "settings that replace the file's, such as run.steps=500")

    sweep = add(
        "sweep",
        _sweep,
        "train the points of a search space and find the best; the same command again continues",
    )
    sweep.add_argument(
        "config", metavar="SWEEP", help="YAML file of a sweep, such as experiments/sweeps/quickstart.yaml"
    )
    _add_overrides(sweep, "such as concurrency=1 or settings.run.steps=50")

    sweep.add_argument("--plan", action="store_true", help="list what would be trained, and stop")

    _add_jobs(add)

    report = add("report", _report, "compare runs or show a sweep as one HTML page")
    report.add_argument(
        "runs", metavar="RUN", nargs="+", help="a run's or a sweep's folder, or its name in runs/"
    )
    report.add_argument(
        "-o", "--output", metavar="FILE", default="report.html", help="the page to write (report.html)"
    )
    report.add_argument("--title", help="its title; the runs' names unless given")

    serve = add(
        "serve",
        _serve,
        "serve models over HTTP: OpenAI's chat completions with self-rewards, and scores of given solutions",
    )
    model_help = "a folder or hub name, a run, a checkpoint, or models:/NAME@ALIAS; again for more models"
    serve.add_argument("--model", metavar="[NAME=]MODEL", action="append", required=True, help=model_help)
    serve.add_argument(
        "--host", help="address to listen on (127.0.0.1); any that others can reach needs an API key"
    )
    serve.add_argument("--port", type=int, help="port to listen on (8000)")
    serve.add_argument(
        "--keys-file", metavar="FILE", help="API keys, one a line; LASER_API_KEY holds a key too"
    )
    serve.add_argument(
        "--follow",
        action="store_true",
        help="serve new weights as they appear: a run's exports, or what an alias names",
    )
    _add_overrides(serve, "settings, such as engine.replicas=2 or limits.queued=16")

    evaluation = add(
        "eval",
        _eval,
        "accuracy, self-verification F1, votes and adaptive sampling; the same command again continues",
    )
    evaluation.add_argument(
        "--model",
        metavar="M",
        help="a Hugging Face folder or name, a run, checkpoint or sweep, or models:/NAME@ALIAS",
    )
    evaluation.add_argument(
        "--data",
        metavar="D",
        action="append",
        help="a file, a data set, or math500, amc23, aime24, aime25, olympiadbench; D:16 draws 16",
    )
    evaluation.add_argument(
        "--samples", metavar="FILE", help="check and score the samples.jsonl of an earlier evaluation again"
    )
    evaluation.add_argument(
        "--config", metavar="CONFIG", help="YAML file of settings that options and overrides replace"
    )
    evaluation.add_argument(
        "-o", "--output", metavar="FOLDER", help="where results go (runs/evaluations/MODEL-SETS)"
    )
    _add_overrides(evaluation, "settings, such as rollout.num_engines=2 or seed=1")

    check = add(
        "check",
        _check,
        "explain a configuration without running it: tokens, prompt, batches, schedule, memory, placement",
    )
    check.add_argument(
        "--strict",
        action="store_true",
        help="refuse also what cannot be checked or does not fit on this machine",
    )
    check.add_argument(
        "--measured", metavar="RUN", type=Path, help="size the pools by the times of this run's folder"
    )
    check.add_argument("config", metavar="CONFIG", help="YAML configuration")
    _add_overrides(check, "settings that replace the file's")

    replay = add("replay", _replay, "losses and gradient norm of a model on a stored step's rollouts")
    replay.add_argument("rollouts", metavar="ROLLOUTS", help="a run's rollouts/step-NNNNNN.parquet")
    replay.add_argument(
        "config", metavar="CONFIG", help="YAML configuration; model.path is the model that is looked at"
    )
    _add_overrides(replay, "settings that replace the file's, such as loss.beta_v=0.2")

    add("doctor", _doctor, "what this machine has, what is missing, and the command that mends it")
    return parser


def _add_overrides(command: argparse.ArgumentParser, what: str) -> None:
    values = "a value is YAML; `key=` is the empty text where a setting may be empty, such as the instruction, else null"
    command.add_argument("overrides", metavar="key=value", nargs="*", help=f"{what}; {values}")


def _add_jobs(add: Callable[..., argparse.ArgumentParser]) -> None:
    """What goes on on a cluster."""
    address_help = "dashboard of the cluster's head (RAY_API_SERVER_ADDRESS, else http://127.0.0.1:8265)"
    submit = add(
        "submit",
        _submit,
        "train, sweep or evaluate on a Ray cluster, whatever the file is for, and follow it",
    )
    submit.add_argument(
        "config", metavar="CONFIG", help="YAML configuration of a run, a sweep or an evaluation"
    )
    _add_overrides(submit, "settings that replace the file's")
    submit.add_argument("--address", metavar="URL", help=address_help)
    submit.add_argument(
        "--storage",
        metavar="PATH",
        default="~/laser",
        help="folder on the cluster for results and inputs (~/laser)",
    )
    submit.add_argument("--detach", action="store_true", help="return when the job is queued")
    submit.add_argument(
        "--no-placement-check",
        action="store_true",
        help="submit also what the nodes that are there could not hold",
    )

    jobs = add("jobs", _jobs_list, "list, follow and stop what was submitted to a Ray cluster")
    orders = jobs.add_subparsers(metavar="COMMAND", required=True)

    def add_order(
        name: str, run: Callable[[argparse.Namespace], int], help_text: str
    ) -> argparse.ArgumentParser:
        order = orders.add_parser(name, help=help_text, description=help_text)
        order.set_defaults(command=run)
        order.add_argument("--address", metavar="URL", help=address_help)
        return order

    job_help = "id of a job, or the name of a run, which means its newest job"
    add_order("list", _jobs_list, "all jobs, the newest first")
    logs = add_order("logs", _jobs_logs, "what a job has written")
    logs.add_argument("-f", "--follow", action="store_true", help="and writes, until it ends")
    logs.add_argument("job", metavar="ID", help=job_help)
    add_order("status", _jobs_status, "what a job is and where it stands").add_argument(
        "job", metavar="ID", help=job_help
    )
    add_order(
        "stop", _jobs_stop, "end a job with a checkpoint, from which submitting it again continues"
    ).add_argument("job", metavar="ID", help=job_help)


if __name__ == "__main__":
    sys.exit(main())
