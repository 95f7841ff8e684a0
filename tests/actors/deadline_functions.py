"""Functions that the tests of deadlines and verifiers run in a child process, by import path."""

import functools
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from multiprocessing.connection import Connection

from orchestrator.messages.verdicts import Status, Verdict

NOT_A_FUNCTION = 42


def sleep(seconds):
    time.sleep(seconds)
    return seconds


def spin_once(seconds):
    """Uses so many seconds of a core."""
    begun = time.process_time()
    while time.process_time() - begun < seconds:
        pass
    return "done"


def spin_in_a_thread(seconds):
    worker = threading.Thread(target=spin_once, args=(seconds,))
    worker.start()
    worker.join()


def spin_in_a_process(seconds):
    """As a verifier that runs programs."""
    code = f"import time\nwhile time.process_time() < {seconds}: pass"
    subprocess.run([sys.executable, "-c", code], check=True)


def big_power():
    """Minutes in C, without a return to the interpreter."""
    return len(bin(9**9**9))


def write_pid_then_big_power(path):
    with open(path, "w") as file:
        file.write(str(os.getpid()))
    os.rename(path, f"{path}.done")
    big_power()


def leave_a_sleeper(path):
    """Starts another process, as a verifier that runs code would, and hangs."""
    sleeper = subprocess.Popen(["sleep", "60"])
    with open(path, "w") as file:
        file.write(str(sleeper.pid))
    time.sleep(60)


def exit_with(status):
    os._exit(status)


def kill_itself(number):
    os.kill(os.getpid(), number)


def exit_beside_a_sleeper(status):
    """Ends, and leaves a process that has open what it had open itself."""
    if os.fork():
        os._exit(status)
    time.sleep(60)


def inherited():
    """What programs that it starts would have open."""
    numbers = map(int, os.listdir("/proc/self/fd"))
    return [number for number in numbers if number > 2 and is_inheritable(number)]


def is_inheritable(number):
    try:
        return os.get_inheritable(number)
    except OSError:  # the listing itself
        return False


def stop_while_it_replies():
    """A reply whose second part never comes."""
    Connection.send_bytes = lambda self, data: kill_itself(signal.SIGSTOP)
    return bytes(100_000)


def fail():
    raise RuntimeError("no luck")


def unpicklable():
    return lambda: None


def allocate(mib):
    return len(bytes(mib * 2**20))


def fill():
    """Takes all memory in small pieces, so that nothing is left to tell it with."""
    pieces = []
    while True:
        pieces.append(bytearray(1000))


KEPT = []


def keep(mib, _=None):
    """What a call leaves behind counts for the next one in the same process."""
    KEPT.append(bytes(mib * 2**20))
    return len(KEPT)


@functools.cache
def helper():
    """A process that answers lines, one after another."""
    return subprocess.Popen(["cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def ask_helper(line):
    helper().stdin.write(f"{line}\n")
    helper().stdin.flush()
    return helper().stdout.readline().strip()


@functools.cache
def connection():
    return socket.socketpair()


def use_connection(value):
    connection()
    return value


@functools.cache
def opened():
    return open(__file__)


def use_file(value):
    opened()
    return value


def verify_without_memory():
    """math-verify, whose LaTeX reader finds no memory; it catches all exceptions."""
    from actors.math_check import verify_math
    from actors.math_verify_source import import_math_verify

    def latex2sympy(*args, **options):
        raise MemoryError

    import_math_verify().parser.latex2sympy = latex2sympy
    return verify_math(r"\boxed{x+1}", "x")


def nested(size):
    return "x" * size


def echo_size(data):
    return len(data)


def obey(response, reference):
    """A verifier that obeys the reference."""
    if reference == "sleep":
        time.sleep(60)
    if reference == "exit":
        os._exit(3)
    if reference == "memory":
        bytes(2**40)
    if reference == "raise":
        raise RuntimeError("no luck")
    if reference == "bool":
        return True
    return Verdict(Status.CORRECT if response == reference else Status.WRONG, response)


def wait_for(path):
    """Return once the file is there."""
    while not os.path.exists(path):
        time.sleep(0.01)
    return path


def slowly(seconds, name, *args):
    """Another of these functions, some time later."""
    time.sleep(seconds)
    return globals()[name](*args)


def wait_if_path(response, reference):
    """A verifier that waits for the file that a response names."""
    if response.startswith("/"):
        wait_for(response)
    return Verdict(Status.CORRECT if response == reference else Status.WRONG, response)
