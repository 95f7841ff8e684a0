"""A driver whose node is lost ends, with the reason. A real Ray in its own process loses its raylet."""

import subprocess
import sys

import pytest

LOSE_THE_RAYLET = """
import signal, sys, time
import psutil, ray
from orchestrator.cluster.own_node import refuse_lost_node
from orchestrator.errors import PoolError

refuse_lost_node()
looks = {"health_check_initial_delay_ms": 0, "health_check_failure_threshold": 2}
looks |= {"health_check_period_ms": 500, "health_check_timeout_ms": 500}
options = {"include_dashboard": False, "log_to_driver": False, "logging_level": "ERROR"}
ray.init(num_cpus=1, _system_config=looks, **options)
refuse_lost_node()
(raylet,) = (one for one in psutil.Process().children(recursive=True) if one.name() == "raylet")
raylet.send_signal(signal.Signals[sys.argv[1]])
deadline = time.monotonic() + 30
while time.monotonic() < deadline:
    try:
        refuse_lost_node()
    except PoolError as error:
        print(error)
        break
    time.sleep(0.2)
raylet.kill()
"""


@pytest.mark.parametrize(
    ("number", "message"),
    [
        ("SIGKILL", "Ray's raylet on this node has ended"),
        ("SIGSTOP", "the cluster has given up this node"),
    ],
)
def test_the_loss_of_the_own_raylet_ends_a_wait(number, message):
    ended = subprocess.run(
        [sys.executable, "-c", LOSE_THE_RAYLET, number],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert message in ended.stdout
