"""Ray's words on the death of an actor, in short."""

import os

import pytest
import ray
from ray.exceptions import RayActorError

from orchestrator.pools.worker import cause_of_death, is_loss


class Mortal:
    def die(self) -> None:
        os._exit(3)

    def pid(self) -> int:
        return os.getpid()


def test_the_cause_of_a_real_death_names_process_and_ending(ray_cluster):
    actor = ray.remote(Mortal).options(num_cpus=0).remote()
    pid = ray.get(actor.pid.remote())
    with pytest.raises(RayActorError) as died:
        ray.get(actor.die.remote())
    words = cause_of_death(died.value)
    assert words.startswith(f"its process {pid} on ")
    assert "exit" in words
    assert "common causes" not in words
    assert len(words) < 250
    assert not is_loss(died.value)


def test_words_of_another_form_stay():
    assert cause_of_death(ValueError("a node was lost")) == "a node was lost"
