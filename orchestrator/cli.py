"""The `laser` command: it reads arguments, calls the library, and turns its errors into messages.

`COMMANDS` is the whole command line. Handlers import what they need when they run, so that `laser --help` and
refusals are quick: torch, Ray and vLLM take seconds to import.

Exit status: 0 done, 2 refused before anything was started, 1 failed while running.
"""

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.errors import LaserError, RunError
from orchestrator.terminal import hide_secrets_in_tracebacks, say_line

if TYPE_CHECKING:
    from orchestrator.config.training import RunConfig
    from orchestrator.jobs.client import Cluster


COMMAND_STARTED = time.monotonic()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status."""
    hide_secrets_in_tracebacks()
    parser = make_parser()
    options, rest = parser.parse_known_args(arguments)
    # Settings may stand on both sides of an option; argparse takes only the first ones.
    if any(setting.startswith("-") for setting in rest) or (rest and not hasattr(options, "overrides")):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        options.overrides += rest
    try:
        return options.command.run(options)
    except LaserError as error:
        say_line(f"laser {options.name}: {error}", stderr=True)
        return 1 if isinstance(error, RunError) else 2
    except PermissionError as error:
        say_line(f"laser {options.name}: {error.filename}: {error.strerror}", stderr=True)
        return 2
    except KeyboardInterrupt:
        advice = f" {options.command.after_interrupt}" if options.command.after_interrupt else ""
        say_line(f"\nlaser {options.name}: interrupted.{advice}", stderr=True)
        return 1


def _train(options: argparse.Namespace) -> int:
    config = _run_config(options)
    from orchestrator.training.context import standalone
    from orchestrator.training.run import train

    outcome = train(config, context=standalone(COMMAND_STARTED))
    if outcome.already_finished:
        steps = outcome.summary["steps"]
        say_line(
            f"{config.folder} is finished after {steps} steps: raise run.steps, or choose another run.name"
        )
    from orchestrator.tracking.address import tracking_uri
    from orchestrator.training.show import show_summary

    show_summary(outcome.summary, config.folder, tracking_uri(config.tracking.uri, config.run.dir))
    return 0


def _sft(options: argparse.Namespace) -> int:
    from orchestrator.config.cold_start import SFTConfig
    from orchestrator.config.training import load_config

    config = load_config(options.config, options.overrides, SFTConfig)
    from orchestrator.training.cold_start import fine_tune

    outcome = fine_tune(config)
    state = "is finished" if outcome.already_finished else "done"
    loss, export = outcome.summary["loss"], config.folder / "export"
    say_line(f"{config.folder} {state}: loss {loss:.3f}. Start training with model.path={export}")
    return 0


def _sweep(options: argparse.Namespace) -> int:
    from orchestrator.config.sweep import base_config, load_sweep

    config = load_sweep(options.config, options.overrides)
    base = base_config(config)
    if options.plan:
        from orchestrator.sweeps.plan import SweepPlan
        from orchestrator.sweeps.show import show_plan

        show_plan(SweepPlan(config, base))
        return 0
    from orchestrator.sweeps.show import show_outcome
    from orchestrator.sweeps.sweep import sweep
    from orchestrator.tracking.address import tracking_command, tracking_uri

    outcome = sweep(config)
    curves = tracking_command(tracking_uri(base.tracking.uri, base.run.dir), outcome.folder)
    show_outcome(outcome, list(config.space), curves)
    if not outcome.failed:
        return 0
    failed = f"{len(outcome.failed)} of {len(outcome.trials)} trials failed"
    say_line(f"laser sweep: {failed}. Run the same command again to retry them.", stderr=True)
    return 1


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
    config = load_eval(options.config, _without_none(given), options.overrides)
    results = evaluate(config)
    show_results(results)
    say_line(f"curves    {tracking_command(tracking_uri(config.tracking.uri, config.dir), results.folder)}")
    return 0


def _serve(options: argparse.Namespace) -> int:
    from orchestrator.config.serving import serve_config

    given = {
        "host": options.host,
        "port": options.port,
        "keys_file": options.keys_file,
        "follow": options.follow or None,
    }
    config = serve_config(options.model, _without_none(given), options.overrides)
    from orchestrator.serving.launch import Service

    Service(config).run()
    return 0


def _submit(options: argparse.Namespace) -> int:
    from orchestrator.jobs.submission import submit

    cluster, job_id = submit(
        options.config,
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
    from orchestrator.jobs.following import readable

    say_line(readable(cluster.log(job_id)), end="")
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
        lines = [f"\nlaser {options.name}: {job_id} keeps running on the cluster", *commands(cluster, job_id)]
        say_line("\n".join(lines), stderr=True)
        return 1
    return 0


def _job(options: argparse.Namespace) -> int:
    from orchestrator.jobs.unpack import unpack

    return main(unpack())


def _report(options: argparse.Namespace) -> int:
    from dashboards.report import write_report

    write_report(options.runs, options.output, options.title)
    say_line(f"{options.output} written: open it in a browser")
    return 0


def _check(options: argparse.Namespace) -> int:
    config = _run_config(options)
    from orchestrator.planning.check import check

    check(config, strict=options.strict, measured=options.measured)
    return 0


def _verify(options: argparse.Namespace) -> int:
    from orchestrator.planning.responses import verify_command

    return verify_command(options)


def _replay(options: argparse.Namespace) -> int:
    config = _run_config(options)
    from orchestrator.training.replay import replay

    say_line(replay(config, options.rollouts).described(config.model.path))
    return 0


def _explain(options: argparse.Namespace) -> int:
    from orchestrator.config.manual import explanation, markdown

    say_line(markdown() if options.markdown else explanation(options.key, options.of))
    return 0


def _new(options: argparse.Namespace) -> int:
    from orchestrator.planning.new_task import write_example

    files = write_example(options.folder)
    say_line(f"{options.folder} holds {', '.join(path.name for path in files)}: begin with README.md")
    return 0


def _doctor(options: argparse.Namespace) -> int:
    from orchestrator.planning.doctor import doctor

    return 0 if doctor() else 1


def _run_config(options: argparse.Namespace) -> "RunConfig":
    from orchestrator.config.training import load_config

    return load_config(options.config, options.overrides)


def _without_none(given: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in given.items() if value is not None}


def _path(text: str) -> Path:
    """A path of the command line, whose `~` the shell leaves in `--option=~/file`."""
    from orchestrator.config.paths import checked_path

    try:
        return Path(checked_path(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


class Argument:
    """An argument of a command, as `argparse` takes it: names or flags, and options such as `help`."""

    def __init__(self, *names: str, **options: Any) -> None:
        self.names = names
        self.options = options


@dataclass(frozen=True)
class Command:
    """A command or, under `jobs`, a subcommand."""

    name: str
    run: Callable[[argparse.Namespace], int]
    """Its handler; returns the exit status."""
    help: str | None
    """None hides the command from `laser --help`."""
    arguments: tuple[Argument, ...] = ()
    subcommands: tuple["Command", ...] = ()
    after_interrupt: str = ""
    """Advice after Ctrl-C."""


def _overrides(what: str) -> Argument:
    values = (
        "a value is YAML; `key=` is the empty text where a setting may be empty, such as the instruction, "
        "else null; `laser explain KEY` says what a key means"
    )
    return Argument("overrides", metavar="key=value", nargs="*", help=f"{what}; {values}")


# A table is easier to read with an argument a line.
# fmt: off
CONFIG = Argument("config", metavar="CONFIG", type=_path,
                  help="YAML configuration, such as experiments/quickstart.yaml")
ADDRESS = Argument("--address", metavar="URL",
                   help="the cluster's dashboard (default: RAY_API_SERVER_ADDRESS, or http://127.0.0.1:8265)")
JOB = Argument("job", metavar="ID", help="id of a job, or the name of a run, which means its newest job")

COMMANDS = (
    # Ray runs this one for a submitted job.
    Command("job", _job, None),
    Command("train", _train, "train a run; the same command again resumes it", (
        CONFIG,
        _overrides("settings that replace the file's, such as loss.alpha=0.5"),
    ), after_interrupt="Run the same command again to resume from the last checkpoint."),
    Command("sft", _sft, "cold start: train on worked solutions before reinforcement learning", (
        CONFIG,
        _overrides("settings that replace the file's, such as run.steps=500"),
    )),
    Command("sweep", _sweep,
        "train the points of a search space and find the best; the same command again resumes it", (
        Argument("config", metavar="SWEEP", type=_path,
                 help="YAML file of a sweep, such as experiments/sweeps/quickstart.yaml"),
        _overrides("such as concurrency=1 or settings.run.steps=50"),
        Argument("--plan", action="store_true", help="list the runs that would be trained, and stop"),
    ), after_interrupt="Run the same command again to resume the sweep."),
    Command("submit", _submit,
        "train, sweep or evaluate on a Ray cluster, as the file asks, and follow the job", (
        Argument("config", metavar="CONFIG", type=_path,
                 help="YAML configuration of a run, a sweep or an evaluation"),
        _overrides("settings that replace the file's"),
        ADDRESS,
        Argument("--storage", metavar="PATH", default="~/laser",
                 help="folder on the cluster for results and inputs (~/laser)"),
        Argument("--detach", action="store_true", help="return when the job is queued"),
        Argument("--no-placement-check", action="store_true",
                 help="submit even if the cluster's present nodes have no room for the job"),
    )),
    Command("jobs", _jobs_list,
        "list, follow and stop the jobs that were submitted to a Ray cluster", subcommands=(
        Command("list", _jobs_list, "all jobs, the newest first", (ADDRESS,)),
        Command("logs", _jobs_logs, "print the log of a job", (
            ADDRESS,
            Argument("-f", "--follow", action="store_true", help="keep printing until the job ends"),
            JOB,
        )),
        Command("status", _jobs_status, "the settings and the state of a job", (ADDRESS, JOB)),
        Command("stop", _jobs_stop,
                "end a job with a checkpoint; submitting it again resumes from there", (ADDRESS, JOB)),
    )),
    Command("report", _report, "compare runs or show a sweep as one HTML page", (
        Argument("runs", metavar="RUN", nargs="+", type=_path,
                 help="a run's or a sweep's folder, or its name in runs/"),
        Argument("-o", "--output", metavar="FILE", type=_path, default="report.html",
                 help="the page to write (report.html)"),
        Argument("--title", help="its title; the runs' names unless given"),
    )),
    Command("serve", _serve,
        "serve models over HTTP: OpenAI's chat completions with self-rewards, scores of given solutions", (
        Argument("--model", metavar="[NAME=]MODEL", action="append", required=True,
                 help="a folder or hub name, a run, a checkpoint or models:/NAME@ALIAS; repeatable"),
        Argument("--host",
                 help="address to listen on (127.0.0.1); any that others can reach needs an API key"),
        Argument("--port", type=int, help="port to listen on (8000)"),
        Argument("--keys-file", metavar="FILE", help="API keys, one a line; LASER_API_KEY holds a key too"),
        Argument("--follow", action="store_true",
                 help="serve new weights as they appear: a run's exports, or an alias' version"),
        _overrides("settings, such as engine.replicas=2 or limits.queued=16"),
    )),
    Command("eval", _eval,
        "accuracy, self-verification F1, votes and adaptive sampling; the same command again resumes it", (
        Argument("--model", metavar="M",
                 help="a Hugging Face folder or name, a run, checkpoint or sweep, or models:/NAME@ALIAS"),
        Argument("--data", metavar="D", action="append",
                 help="a file, a data set, or math500, amc23, aime24, aime25, olympiadbench; D:16 draws 16"),
        Argument("--samples", metavar="FILE",
                 help="check and score the samples.jsonl of an earlier evaluation again"),
        Argument("--config", metavar="CONFIG", type=_path,
                 help="YAML file of settings that options and overrides replace"),
        Argument("-o", "--output", metavar="FOLDER",
                 help="folder of the results (runs/evaluations/MODEL-SETS)"),
        _overrides("settings, such as rollout.num_engines=2 or seed=1"),
    ), after_interrupt="Run the same command again to draw the samples that are missing."),
    Command("check", _check,
        "explain a configuration without running it: tokens, prompt, batches, schedule, memory, placement", (
        Argument("--strict", action="store_true",
                 help="also refuse what cannot be checked or does not fit on this machine"),
        Argument("--measured", metavar="RUN", type=_path,
                 help="size the pools by the times of this run's folder"),
        CONFIG,
        _overrides("settings that replace the file's"),
    )),
    Command("verify", _verify, "list references that the verifier cannot read, or verify stored responses", (
        Argument("data", metavar="DATA",
                 help="a file, a data set, or math500, amc23, aime24, aime25, olympiadbench"),
        Argument("--problem-field", metavar="FIELD", default="problem", help="field of the problem"),
        Argument("--answer-field", metavar="FIELD", default="answer", help="field of the reference (answer)"),
        Argument("--split", metavar="SPLIT", default="train", help="split of a data set (train)"),
        Argument("--responses", metavar="FILE", type=_path, help="responses to verify instead, JSON lines"),
        Argument("--verifier", metavar="VERIFIER", default="math",
                 help="with --responses: a name, an import path or {name: ..., ...} (math)"),
        Argument("--workers", metavar="N", type=int, default=1, help="with --responses: workers (1)"),
        Argument("-o", "--output", metavar="FILE", type=_path, help="with --responses: takes the verdicts"),
    )),
    Command("explain", _explain,
        "explain a setting or a section of settings: type, bounds, default, meaning", (
        Argument("key", metavar="KEY", nargs="?",
                 help="such as loss or rollout.colocate; without it, the sections of all commands"),
        Argument("--of", metavar="COMMAND", choices=("train", "sft", "sweep", "eval", "serve"),
                 help="explain only the setting of this command: train, sft, sweep, eval or serve"),
        Argument("--markdown", action="store_true",
                 help="print docs/configuration.md: all settings of all commands"),
    )),
    Command("replay", _replay, "losses and gradient norm of a model on a stored step's rollouts", (
        Argument("rollouts", metavar="ROLLOUTS", type=_path, help="a run's rollouts/step-NNNNNN.parquet"),
        Argument("config", metavar="CONFIG",
                 help="YAML configuration; model.path is the model that is looked at"),
        _overrides("settings that replace the file's, such as loss.beta_v=0.2"),
    )),
    Command("new", _new, "write a small working example of your own task: data, verifier, test, recipe", (
        Argument("folder", metavar="FOLDER", type=_path, help="a folder that does not exist"),
    )),
    Command("doctor", _doctor, "report what this machine has and lacks, and the command that mends it"),
)
# fmt: on


def make_parser() -> argparse.ArgumentParser:
    """The parser of `COMMANDS`. Its options have `command`, and `name`: `jobs` for `laser jobs logs`."""
    parser = argparse.ArgumentParser(
        prog="laser", description="LaSeR: reinforcement learning with last-token self-rewarding, on Ray."
    )
    _add_commands(parser, COMMANDS)
    return parser


def _add_commands(
    parser: argparse.ArgumentParser, commands: Sequence[Command], parent: Command | None = None
) -> None:
    group = parser.add_subparsers(metavar="COMMAND", required=True)
    for command in commands:
        # argparse lists a command without the argument `help` nowhere.
        texts: dict[str, Any] = {"help": command.help, "description": command.help} if command.help else {}
        own = group.add_parser(command.name, **texts)
        own.set_defaults(command=command, name=(parent or command).name)
        for argument in command.arguments:
            own.add_argument(*argument.names, **argument.options)
        if command.subcommands:
            _add_commands(own, command.subcommands, command)


if __name__ == "__main__":
    sys.exit(main())
