import os
import sys
import time

import pytest
import ray

from orchestrator.cluster.bundles import Bundles, bundles_for
from orchestrator.cluster.placement import Placement, label_selectors
from orchestrator.errors import ConfigError
from tests.settings import configure


def plan(nodes, **sections):
    bundles = bundles_for(configure(**sections), nodes)
    return bundles.learners, bundles.engines, bundles.verifiers


def test_each_pool_has_its_bundles_and_none_asks_for_a_gpu_it_does_not_use():
    assert plan(
        [{"CPU": 8.0}], learning={"num_ranks": 2}, rollout={"num_engines": 2}, verification={"num_workers": 3}
    ) == (
        [{"CPU": 2.0}],  # one for all ranks of a node
        [{"CPU": 1.0}, {"CPU": 1.0}],
        [{"CPU": 1.0}] * 3,
    )


def test_a_whole_run_fits_in_one_cpu_by_fractions():
    shares = {"learning": {"cpus_per_rank": 0.25}, "rollout": {"cpus": 0.5}, "verification": {"cpus": 0.25}}
    assert plan([{"CPU": 1.0}], **shares) == ([{"CPU": 0.25}], [{"CPU": 0.5}], [{"CPU": 0.25}])


def test_fractions_that_add_up_only_up_to_rounding_fit():
    shares = {
        "learning": {"cpus_per_rank": 0.1, "num_ranks": 3},
        "rollout": {"cpus": 0.6},
        "verification": {"cpus": 0.1},
    }
    learners, _, _ = plan([{"CPU": 1.0}], **shares)
    assert learners == [{"CPU": pytest.approx(0.3)}]


def test_ranks_are_split_over_nodes_by_what_a_node_holds():
    nodes = [{"CPU": 16.0, "GPU": 4.0}, {"CPU": 16.0, "GPU": 4.0}]
    learners, engines, _ = plan(
        nodes,
        learning={"num_ranks": 5, "gpus_per_rank": 1},
        rollout={"gpus": 1, "tensor_parallel": 2},
        verification={"num_workers": 1},
    )
    assert learners == [{"CPU": 4.0, "GPU": 4.0}, {"CPU": 1.0, "GPU": 1.0}]
    assert engines == [{"CPU": 1.0, "GPU": 2.0}]  # an engine with all its tensor-parallel ranks


def test_custom_resources_force_a_pool_onto_nodes_that_have_them():
    nodes = [{"CPU": 8.0, "learner": 2.0}, {"CPU": 8.0, "rollout": 4.0}]
    learners, engines, verifiers = plan(
        nodes,
        learning={"num_ranks": 2, "resources": {"learner": 1}},
        rollout={"num_engines": 2, "resources": {"rollout": 1}},
    )
    assert learners == [{"CPU": 2.0, "learner": 2.0}]
    assert engines == [{"CPU": 1.0, "rollout": 1.0}] * 2
    assert verifiers == [{"CPU": 1.0}]


def test_colocated_engines_reserve_nothing():
    nodes = [{"CPU": 64.0, "GPU": 8.0}]
    learners, engines, verifiers = plan(
        nodes,
        learning={"num_ranks": 8, "gpus_per_rank": 1},
        rollout={"num_engines": 4, "tensor_parallel": 2, "gpus": 1, "colocate": True},
        verification={"num_workers": 2},
    )
    assert (learners, engines, verifiers) == ([{"CPU": 8.0, "GPU": 8.0}], [], [{"CPU": 1.0}] * 2)


def test_a_colocated_engine_does_not_take_turns_with_ranks_of_two_nodes():
    sections = {
        "learning": {"num_ranks": 6, "gpus_per_rank": 1},
        "rollout": {"num_engines": 3, "tensor_parallel": 2, "gpus": 1, "colocate": True},
    }
    with pytest.raises(
        ConfigError, match=r"a node holds 3 learner ranks, and rollout.tensor_parallel=2 does not divide 3"
    ):
        plan([{"CPU": 16.0, "GPU": 3.0}] * 2, **sections)
    assert plan([{"CPU": 16.0, "GPU": 4.0}] * 2, **sections)[0] == [
        {"CPU": 4.0, "GPU": 4.0},
        {"CPU": 2.0, "GPU": 2.0},
    ]


@pytest.mark.parametrize(
    ("nodes", "expected"),
    [
        ([("gpu", 8, 2), ("cpu", 2, 0)], "!in(gpu)"),
        ([("gpu", 8, 2), ("cpu", 1, 0)], None),  # not all verifiers would fit there
        ([("gpu", 8, 2), ("gpu2", 8, 2)], None),
        ([("cpu", 8, 0)], None),
    ],
)
def test_verifiers_stay_off_gpu_nodes_when_the_others_have_room(monkeypatch, nodes, expected):
    known = [
        {"NodeID": name, "Alive": True, "Resources": {"CPU": float(cpus), "GPU": float(gpus)}}
        for name, cpus, gpus in nodes
    ]
    monkeypatch.setattr(ray, "nodes", lambda: known)  # this machine is no cluster with GPUs
    engine, verifier = {"CPU": 1.0, "GPU": 1.0}, {"CPU": 1.0}
    bundles = Bundles(
        [engine],
        [engine],
        [verifier, verifier],
        ranks_per_learner=1,
        rank=engine,
        engine=engine,
        verifier=verifier,
    )
    selector = {"ray.io/node-id": expected} if expected else {}
    assert label_selectors(bundles) == [{}, {}, selector, selector]


@pytest.mark.parametrize("num_ranks", [1, 4, 5, 6, 7, 9])
def test_no_bundle_gets_more_ranks_than_it_holds(monkeypatch, num_ranks):
    config = configure(learning={"num_ranks": num_ranks, "gpus_per_rank": 1})
    placement = object.__new__(Placement)  # without a placement group, which needs a cluster
    placement.bundles = bundles_for(config, [{"CPU": 16.0, "GPU": 4.0}] * 3)
    monkeypatch.setattr(placement, "_spawn", lambda cls, bundle, *arguments: bundle)
    chosen = [placement.learner(object, rank) for rank in range(num_ranks)]
    assert [float(chosen.count(bundle)) for bundle in range(max(chosen) + 1)] == [
        bundle["GPU"] for bundle in placement.bundles.learners
    ]


@pytest.mark.parametrize(
    ("nodes", "sections", "start"),
    [
        ([{"CPU": 2.0}], {"rollout": {"cpus": 1000}}, "the pools need 1002 CPUs, but the cluster has 2:\n"),
        ([{"CPU": 8.0}], {"rollout": {"gpus": 1}}, "the pools need 1 GPU, but the cluster has 0:\n"),
        (
            [{"CPU": 8.0}],
            {"rollout": {"resources": {"fast": 0.5}}},
            "the pools need 0.5 units of the resource fast, but the cluster has 0:\n",
        ),
        (
            [{"CPU": 2.0}],
            {"learning": {"num_ranks": 4, "gpus_per_rank": 1}},
            "the pools need 6 CPUs, but the cluster has 2; the pools need 4 GPUs",
        ),
        (
            [{"CPU": 4.0}, {"CPU": 4.0}],
            {"rollout": {"cpus": 5}},
            "no node can hold 5 CPUs (each engine, verifier and learner rank",
        ),
    ],
)
def test_what_cannot_fit_is_refused_with_the_keys_to_lower(nodes, sections, start):
    with pytest.raises(ConfigError) as caught:
        bundles_for(configure(**sections), nodes)
    message = str(caught.value)
    assert message.startswith(start)
    for key in ("learning.cpus_per_rank=1", "rollout.cpus=", "verification.cpus=1", "RAY_ADDRESS"):
        assert key in message


class Where:
    """Returns its arguments, its placement group and its number of threads."""

    def __init__(self, *arguments):
        self.arguments = arguments

    def seen(self):
        group = ray.get_runtime_context().get_placement_group_id()
        return *self.arguments, group, os.environ["OMP_NUM_THREADS"]


@pytest.fixture
def placement(ray_cluster):
    """Four bundles: both ranks (0.5 CPU), an engine (0.5), and two verifiers (0.25 each)."""
    ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])
    config = configure(
        learning={"num_ranks": 2, "cpus_per_rank": 0.25},
        rollout={"num_engines": 1, "cpus": 0.5},
        verification={"num_workers": 2, "cpus": 0.25},
    )
    placement = Placement(bundles_for(config, [{"CPU": 2.0}]))
    yield placement
    placement.remove()


def free_shares(group, expected, timeout_s=10):
    """The free CPUs of each bundle. Ray counts an actor's share a moment after its start."""
    deadline = time.monotonic() + timeout_s
    while True:
        left = ray.available_resources()
        found = [left.get(f"CPU_group_{bundle}_{group}", 0.0) for bundle in range(len(expected))]
        if found == expected or time.monotonic() > deadline:
            return found
        time.sleep(0.1)


def test_actors_live_in_the_bundle_of_their_pool(placement):
    group = placement.group.id.hex()
    assert free_shares(group, [0.5, 0.5, 0.25, 0.25]) == [0.5, 0.5, 0.25, 0.25]
    ranks = [placement.learner(Where, rank, "rank", rank) for rank in range(2)]
    assert ray.get([rank.seen.remote() for rank in ranks], timeout=60) == [
        ("rank", 0, group, "1"),
        ("rank", 1, group, "1"),
    ]
    assert free_shares(group, [0.0, 0.5, 0.25, 0.25]) == [0.0, 0.5, 0.25, 0.25]
    others = [placement.engine(Where, 0, "engine"), placement.verifier(Where, 1, 2, "verifier")]
    assert ray.get([other.seen.remote() for other in others], timeout=60) == [
        ("engine", group, "1"),
        ("verifier", group, "1"),
    ]
    assert free_shares(group, [0.0, 0.0, 0.25, 0.0]) == [0.0, 0.0, 0.25, 0.0]
