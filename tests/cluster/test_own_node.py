"""A driver whose node is lost ends, with the reason. A real Ray in its own process, whose raylet dies."""

import subprocess
import sys

LOSE_THE_RAYLET = """
import time
import psutil, ray
from orchestrator.cluster.own_node import refuse_lost_node
from orchestrator.errors import PoolError

refuse_lost_node()
ray.init(num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
refuse_lost_node()
(raylet,) = (one for one in psutil.Process().children(recursive=True) if one.name() == "raylet")
raylet.kill()
deadline = time.monotonic() + 30
while time.monotonic() < deadline:
    try:
        refuse_lost_node()
    except PoolError as error:
        print(error)
        break
    time.sleep(0.2)
"""


def test_the_death_of_the_own_raylet_ends_a_wait():
    ended = subprocess.run(
        [sys.executable, "-c", LOSE_THE_RAYLET], capture_output=True, text=True, timeout=120, check=True
    )
    assert "Ray's raylet on this node has ended" in ended.stdout
