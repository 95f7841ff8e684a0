"""Runs a Python program in a process with limits, and says how it ended.

In: files, arguments, stdin, limits. Out: a `ProgramRun`. It is no jail for hostile code: it holds what a
policy writes by accident, and what it writes to look right.
"""

import contextlib
import json
import math
import os
import platform
import secrets
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from orchestrator.config.verifiers import CodeSettings
from orchestrator.errors import ConfigError

LAUNCHER = Path(__file__).with_name("sandbox_child.py")
MODES = ("namespaces", "user")
"""Own namespaces; or, where the kernel gives none, another user id with a filter of system calls."""
FIRST_UID = 1_000_000_000
"""User ids from here on belong to programs; each run has its own, because a limit counts by user id."""
UIDS = 100_000_000
NONCE_BYTES = 16


@dataclass(frozen=True)
class ProgramRun:
    """How a program ended."""

    end: str
    """`exit`, or why it was ended: `cpu`, `wall`, `output`, `socket`, `signal`."""
    code: int
    """Exit status, or the number of the signal."""
    stdout: str
    stderr: str
    cpu_s: float
    proof: bytes
    """What the program wrote to the descriptor of its proof."""


class SandboxFailure(Exception):
    """The program could not be run; it is not the program's fault."""


def run_program_with_limits(
    limits: CodeSettings,
    files: Mapping[str, str],
    stdin: str = "",
    nonce: bytes = b"",
    mode: str | None = None,
) -> ProgramRun:
    """Run `main.py` of `files`, which finds the descriptors of nonce and proof as its two arguments.

    Args:
        nonce: What the program can read from the first descriptor, once.
        mode: One of `MODES`; the one that works here unless given.

    Raises:
        SandboxFailure: The program could not be run.
    """
    mode = mode or working_mode()
    folder = Path(tempfile.mkdtemp(prefix="laser-code-"))
    try:
        with contextlib.ExitStack() as stack:
            return _Run(limits, mode, folder, stack).result(files, stdin, nonce)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class _Run:
    """One run: descriptors, the launcher, and the wait for its end."""

    def __init__(self, limits: CodeSettings, mode: str, folder: Path, stack: contextlib.ExitStack) -> None:
        self.limits, self.mode, self.folder, self.stack = limits, mode, folder, stack

    def result(self, files: Mapping[str, str], stdin: str, nonce: bytes) -> ProgramRun:
        pipes = {name: os.pipe() for name in ("stdout", "stderr", "report", "proof", "nonce")}
        reads = {name: pair[0] for name, pair in pipes.items()}
        writes = {name: pair[1] for name, pair in pipes.items()}
        for name in pipes:
            self.stack.callback(_close, reads[name])
            self.stack.callback(_close, writes[name])
        os.write(writes["nonce"], nonce)
        _close(writes["nonce"])
        control = self._settings(files, [reads["nonce"], writes["proof"]])
        given = self._file(stdin.encode(errors="surrogatepass"))
        inherited = (control, writes["report"], reads["nonce"], writes["proof"])
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", str(LAUNCHER), str(control), str(writes["report"])],
            stdin=given,
            stdout=writes["stdout"],
            stderr=writes["stderr"],
            pass_fds=inherited,
            env={},
        )
        self.stack.callback(process.wait)
        self.stack.callback(process.kill)
        for name in ("stdout", "stderr", "report", "proof"):
            _close(writes[name])
        kept, end = self._read(reads)
        process.kill()
        process.wait()
        if end is not None:
            return ProgramRun(end, 0, kept["stdout"], kept["stderr"], 0.0, b"")
        return self._ended(kept)

    def _settings(self, files: Mapping[str, str], inherited: Sequence[int]) -> int:
        limits, prefix = self.limits, os.path.realpath(sys.base_prefix)
        name = f"python{sys.version_info.major}.{sys.version_info.minor}"
        inside = "/python" if self.mode == "namespaces" else prefix
        settings = {
            "mode": self.mode,
            "folder": str(self.folder),
            "prefix": prefix,
            "python": f"{inside}/bin/{name}",
            "arguments": [f"{inside}/bin/{name}", "-I", "-B", "main.py", *map(str, inherited)],
            "variables": {
                "PATH": "/usr/bin:/bin",
                "HOME": "/work",
                "LANG": "C.UTF-8",
                "LD_LIBRARY_PATH": f"{inside}/lib",
                "OPENBLAS_NUM_THREADS": "1",
            },
            "inherited": list(inherited),
            "files": dict(files),
            "uid": FIRST_UID + secrets.randbelow(UIDS),
            "cpu_s": math.ceil(limits.cpu_s),
            "memory_mib": limits.memory_mib,
            "processes": limits.processes,
            "file_mib": limits.file_mib,
        }
        return self._file(json.dumps(settings).encode())

    def _file(self, content: bytes) -> int:
        """The descriptor of a file without a name."""
        file = self.stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - the stack closes it
        file.write(content)
        file.seek(0)
        return file.fileno()

    def _read(self, reads: Mapping[str, int]) -> tuple[dict[str, Any], str | None]:
        """What was written until the report came, and why the program has to be ended before."""
        kept = {name: bytearray() for name in ("stdout", "stderr", "report", "proof")}
        most = self.limits.output_kib * 1024
        deadline = time.monotonic() + wall_seconds(self.limits)
        end: str | None = None
        with selectors.DefaultSelector() as selector:
            for name in kept:
                os.set_blocking(reads[name], False)
                selector.register(reads[name], selectors.EVENT_READ, name)
            while end is None and selector.get_map():
                # After the report only what still lies in the pipes is read.
                patience = 0.0 if kept["report"] else deadline - time.monotonic()
                ready = selector.select(max(0.0, patience))
                if not ready:
                    end = None if kept["report"] else "wall"
                    break
                for key, _ in ready:
                    data = os.read(key.fd, 65536)
                    if not data:
                        selector.unregister(key.fd)
                    kept[key.data] += data
                if len(kept["stdout"]) + len(kept["stderr"]) + len(kept["proof"]) > most:
                    end = "output"
        texts = {name: bytes(kept[name][:most]).decode(errors="replace") for name in ("stdout", "stderr")}
        return {**texts, "report": bytes(kept["report"]), "proof": bytes(kept["proof"])}, end

    def _ended(self, kept: Mapping[str, Any]) -> ProgramRun:
        try:
            report = json.loads(kept["report"])
        except ValueError as error:
            raise SandboxFailure(f"the launcher died: {kept['stderr'][-300:]}") from error
        if "failure" in report:
            raise SandboxFailure(report["failure"])
        if report["exit"] == 125 and kept["stderr"].startswith("sandbox: "):
            raise SandboxFailure(kept["stderr"][:300])
        end, code = "exit", report["exit"]
        if report["signal"] is not None:
            code = report["signal"]
            spent = report["cpu_s"] >= math.ceil(self.limits.cpu_s) - 0.1
            cpu = code == signal.SIGXCPU or (code == signal.SIGKILL and spent)
            end = "cpu" if cpu else "socket" if code == signal.SIGSYS else "signal"
        return ProgramRun(end, code, kept["stdout"], kept["stderr"], report["cpu_s"], kept["proof"])


def wall_seconds(limits: CodeSettings) -> float:
    """Seconds after which a program is ended that uses no CPU: a busy machine is not its fault."""
    return 3.0 * limits.cpu_s + 3.0


_FORKS = """
import os, sys, time
for number in range({forks}):
    try:
        if os.fork() == 0:
            time.sleep(30)
            os._exit(0)
    except OSError:
        print("refused after", number)
        break
else:
    print("never refused")
"""
_SOCKET = "import socket\nsocket.create_connection(('127.0.0.1', 9), 1)\n"


@lru_cache(maxsize=1)
def working_mode() -> str:
    """The first of `MODES` that holds a fork bomb and a connection on this machine.

    Raises:
        ConfigError: None does.
    """
    if platform.system() != "Linux":
        raise ConfigError("verifier 'code': needs Linux, to limit what a program may do")
    faults = []
    for mode in MODES:
        fault = _fault_of(mode)
        if fault is None:
            return mode
        faults.append(f"{mode}: {fault}")
    raise ConfigError(
        "verifier 'code': this machine cannot hold programs within limits (" + "; ".join(faults) + "). "
        "Allow user namespaces, or run the workers as root with CAP_SETUID"
    )


def _fault_of(mode: str) -> str | None:
    """Why a mode does not work here; None where it does."""
    limits = CodeSettings(name="code", processes=4, cpu_s=2.0)
    try:
        forks = run_program_with_limits(limits, {"main.py": _FORKS.format(forks=12)}, mode=mode)
        connects = run_program_with_limits(limits, {"main.py": _SOCKET}, mode=mode)
    except (SandboxFailure, OSError) as error:
        return str(error)
    found = forks.stdout.split()
    if found[:2] != ["refused", "after"] or found[2] == "0":
        return f"processes are not limited ({forks.stdout or forks.stderr[-200:]})"
    if connects.end == "exit" and connects.code == 0:
        return "a program can open a connection"
    return None


def _close(descriptor: int) -> None:
    with contextlib.suppress(OSError):
        os.close(descriptor)
