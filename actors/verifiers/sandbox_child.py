"""Starts one program in a process with limits. Runs as a script, by the standard library alone.

In: file descriptors of the settings (JSON) and of the report. Out: the report (JSON): how the program ended,
and its CPU seconds. The program has its own user id or user namespace, processes, network and files.
"""

import contextlib
import ctypes
import json
import os
import platform
import resource
import signal
import struct
import sys
from typing import Any, NoReturn

CLONE_NEWNS, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_RDONLY, MS_NOSUID, MS_REMOUNT, MS_BIND, MS_REC, MS_PRIVATE = 1, 2, 32, 4096, 16384, 1 << 18
PR_SET_PDEATHSIG, PR_SET_SECCOMP, PR_CAPBSET_DROP, PR_SET_NO_NEW_PRIVS = 1, 22, 24, 38
SYS_MOUNT_SETATTR, AT_RECURSIVE, MOUNT_ATTR_RDONLY = 442, 0x8000, 1
LAST_CAPABILITY = 63
AF_UNIX = 1

ARCHITECTURES: dict[str, tuple[int, dict[str, int]]] = {
    "x86_64": (
        0xC000003E,
        {"socket": 41, "ptrace": 101, "setpgid": 109, "setsid": 112, "mount": 165, "unshare": 272},
    ),
    "aarch64": (
        0xC00000B7,
        {"socket": 198, "ptrace": 117, "setpgid": 154, "setsid": 157, "mount": 40, "unshare": 97},
    ),
}
"""The kernel's number of an architecture, and of its system calls that the filter knows."""
IO_URING_SETUP = 425

libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *arguments: Any) -> None:
    """A function of the C library that returns 0, or raises OSError."""
    if getattr(libc, name)(*arguments) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{name}: {os.strerror(number)}")


def mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    """mount(2)."""
    texts = [None if text is None else text.encode() for text in (source, target, kind, data)]
    call("mount", texts[0], texts[1], texts[2], ctypes.c_ulong(flags), texts[3])


def bind_readonly(source: str, target: str) -> None:
    """Show a folder or device at another place, where nothing in it can be changed."""
    mount(source, target, None, MS_BIND | MS_REC)
    if not os.path.isdir(source):
        return
    attributes = struct.pack("<QQQQ", MOUNT_ATTR_RDONLY, 0, 0, 0)
    libc.syscall.restype = ctypes.c_long
    if libc.syscall(SYS_MOUNT_SETATTR, -100, target.encode(), AT_RECURSIVE, attributes, len(attributes)):
        mount(source, target, None, MS_BIND | MS_REMOUNT | MS_RDONLY | MS_NOSUID)


def make_root(settings: dict[str, Any]) -> None:
    """A root folder of the program's own: the system's libraries, Python, and a folder to work in."""
    root = settings["folder"]
    mount("none", "/", None, MS_REC | MS_PRIVATE)
    size = settings["file_mib"] + 4
    mount("tmpfs", root, "tmpfs", MS_NOSUID, f"size={size}m,nr_inodes=10000,mode=755")
    for name in ("usr", "lib", "lib64", "bin"):
        path, inside = f"/{name}", f"{root}/{name}"
        if os.path.islink(path):
            os.symlink(os.readlink(path), inside)
        elif os.path.isdir(path):
            os.mkdir(inside)
            bind_readonly(path, inside)
    os.mkdir(f"{root}/python")
    bind_readonly(settings["prefix"], f"{root}/python")
    os.mkdir(f"{root}/dev")
    for name in ("null", "zero", "random", "urandom"):
        with open(f"{root}/dev/{name}", "w"):
            pass
        bind_readonly(f"/dev/{name}", f"{root}/dev/{name}")
    for name in ("tmp", "work"):
        os.mkdir(f"{root}/{name}")
        os.chmod(f"{root}/{name}", 0o777)
    os.mkdir(f"{root}/proc")
    with contextlib.suppress(OSError):  # some containers forbid it; then there is no /proc at all
        mount("proc", f"{root}/proc", "proc", MS_NOSUID)
    os.chroot(root)
    os.chdir("/work")


def filter_calls(keep_in_group: bool) -> None:
    """Kill the program when it opens a socket that is not local; refuse other calls that leave its limits."""
    architecture, numbers = ARCHITECTURES[platform.machine()]
    refused = [numbers["ptrace"], numbers["mount"], numbers["unshare"], IO_URING_SETUP]
    if keep_in_group:
        refused += [numbers["setsid"], numbers["setpgid"]]
    load, equal, give = 0x20, 0x15, 0x06
    allow, kill, refuse = 0x7FFF0000, 0x80000000, 0x00050000 | 1
    lines = [(load, 0, 0, 4), (equal, 1, 0, architecture), (give, 0, 0, kill), (load, 0, 0, 0)]
    for number in refused:
        lines += [(equal, 0, 1, number), (give, 0, 0, refuse)]
    lines += [(equal, 0, 3, numbers["socket"]), (load, 0, 0, 16), (equal, 1, 0, AF_UNIX), (give, 0, 0, kill)]
    lines += [(give, 0, 0, allow)]
    code = b"".join(struct.pack("<HBBI", *line) for line in lines)
    buffer = ctypes.create_string_buffer(code, len(code))

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("filter", ctypes.c_void_p)]

    program = Program(len(lines), ctypes.cast(buffer, ctypes.c_void_p))
    call("prctl", PR_SET_SECCOMP, 2, ctypes.byref(program), 0, 0)


def run_program(settings: dict[str, Any], uid: int | None, keep_in_group: bool) -> NoReturn:
    """Give up every right, take the limits, and become the program."""
    if not keep_in_group:
        os.setsid()
    if uid is not None:
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)
    for number in range(LAST_CAPABILITY + 1):
        libc.prctl(PR_CAPBSET_DROP, number, 0, 0, 0)
    cpu, mib = settings["cpu_s"], 2**20
    limits = {
        resource.RLIMIT_CPU: (cpu, cpu + 1),
        resource.RLIMIT_AS: (settings["memory_mib"] * mib,) * 2,
        resource.RLIMIT_FSIZE: (settings["file_mib"] * mib,) * 2,
        resource.RLIMIT_NPROC: (settings["processes"],) * 2,
        resource.RLIMIT_NOFILE: (64, 64),
        resource.RLIMIT_CORE: (0, 0),
    }
    for kind, limit in limits.items():
        resource.setrlimit(kind, limit)
    call("prctl", PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if platform.machine() in ARCHITECTURES:
        filter_calls(keep_in_group)
    for number in settings["inherited"]:
        os.set_inheritable(number, True)
    os.execve(settings["python"], settings["arguments"], settings["variables"])


def start_and_wait(settings: dict[str, Any], uid: int | None, keep_in_group: bool) -> dict[str, Any]:
    """Run the program to its end, and say how it ended."""
    program = os.fork()
    if program == 0:
        try:
            run_program(settings, uid, keep_in_group)
        except BaseException as error:
            os.write(2, f"sandbox: {error}\n".encode())
            os._exit(125)
    while True:
        ended, status, usage = os.wait4(-1, 0)
        if ended == program:
            break
    return {
        "exit": os.WEXITSTATUS(status) if os.WIFEXITED(status) else None,
        "signal": os.WTERMSIG(status) if os.WIFSIGNALED(status) else None,
        "cpu_s": usage.ru_utime + usage.ru_stime,
    }


def in_namespaces(settings: dict[str, Any], report: int) -> None:
    """Run the program as the only one of its namespaces, which end with it."""
    uid, gid = os.getuid(), os.getgid()
    flags = CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWIPC | CLONE_NEWUTS
    call("unshare", flags if uid == 0 else flags | CLONE_NEWUSER)
    if uid != 0:
        for name, text in (("setgroups", "deny"), ("uid_map", f"0 {uid} 1"), ("gid_map", f"0 {gid} 1")):
            with open(f"/proc/self/{name}", "w") as file:
                file.write(text)
    init = os.fork()
    if init:
        os.waitpid(init, 0)
        return
    try:
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        make_root(settings)
        for name, text in settings["files"].items():
            with open(f"/work/{name}", "w", encoding="utf-8", errors="surrogatepass") as file:
                file.write(text)
        found = start_and_wait(settings, settings["uid"] if uid == 0 else None, keep_in_group=False)
    except BaseException as error:
        found = {"failure": f"{type(error).__name__}: {error}"}
    os.write(report, json.dumps(found).encode())
    os._exit(0)  # the kernel ends all other processes of the namespace


def as_other_user(settings: dict[str, Any], report: int) -> None:
    """Run the program under a user id of its own, without namespaces."""
    if os.getuid() != 0:
        raise PermissionError("only root can run a program as another user")
    if platform.machine() not in ARCHITECTURES:
        raise OSError(f"no filter of system calls for {platform.machine()}")
    uid, folder = settings["uid"], settings["folder"]
    os.chmod(folder, 0o755)
    work = f"{folder}/work"
    os.mkdir(work)
    for name, text in settings["files"].items():
        with open(f"{work}/{name}", "w", encoding="utf-8", errors="surrogatepass") as file:
            file.write(text)
    os.chown(work, uid, uid)
    os.chdir(work)
    found = start_and_wait(settings, uid, keep_in_group=True)
    sweeper = os.fork()
    if sweeper == 0:
        os.setgid(uid)
        os.setuid(uid)
        with contextlib.suppress(OSError):
            os.kill(-1, signal.SIGKILL)  # all other processes of this user id
        os._exit(0)
    os.waitpid(sweeper, 0)
    os.write(report, json.dumps(found).encode())


def launch() -> None:
    """Run the program that the settings describe."""
    control, report = int(sys.argv[1]), int(sys.argv[2])
    with os.fdopen(control, encoding="utf-8", errors="surrogatepass") as file:
        settings = json.load(file)
    try:
        (in_namespaces if settings["mode"] == "namespaces" else as_other_user)(settings, report)
    except BaseException as error:
        os.write(report, json.dumps({"failure": f"{type(error).__name__}: {error}"}).encode())


if __name__ == "__main__":
    launch()
