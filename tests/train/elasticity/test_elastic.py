"""How many workers a cluster gives, with Ray's own policy underneath; and what is used of Ray's internals.

The cluster is described by the two answers that the policy reads (`ray.nodes` and the coordinator's reservation); that
real raylets give these answers is seen in tests/faults/test_elastic.py.
"""

from __future__ import annotations

import inspect
from types import SimpleNamespace
from typing import Any

import pytest
import ray
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import _AutoscalingCoordinatorActor
from ray.train import ScalingConfig
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.execution.scaling_policy import NoopDecision
from ray.train.v2._internal.execution.scaling_policy.elastic import ElasticScalingPolicy
from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

from pretrainer.train.elasticity.elastic import PolicyTorchTrainer, UsefulSizes
from pretrainer.train.elasticity.resize import BURST_S
from tests.train.elasticity.cluster import STABLE_S, Cluster, first_start, policy, running, size


def test_nodes_that_an_autoscaler_brings_one_after_the_other_are_one_start(cluster: Cluster) -> None:
    cluster.nodes = {"a": {"CPU": 1}}
    asks, _driver = policy(3, autoscaling=True)
    starts = []
    for now_s, name in [(0, "a"), (8, "b"), (16, "b"), (24, "c")]:
        cluster.now_s, cluster.nodes = now_s, {**cluster.nodes, name: {"CPU": 1}}
        starts.append(size(asks.make_decision_for_non_running_worker_group()))
    assert starts == [None, None, None, 3], "the most is waited for no longer"
    cluster.nodes.popitem()
    assert size(asks.make_decision_for_non_running_worker_group()) is None, "one came a moment ago"
    cluster.now_s += BURST_S
    assert size(asks.make_decision_for_non_running_worker_group()) == 2, "none comes: with those that are there"
    cluster.nodes.popitem()
    assert size(asks.make_decision_for_non_running_worker_group()) == 1, "a node that goes is no reason to wait"


def test_a_later_segment_begins_at_once_on_the_nodes_of_the_one_before(cluster: Cluster) -> None:
    """Its controller is another one, for which all nodes are new."""
    cluster.nodes = {"a": {"CPU": 1}, "b": {"CPU": 1}}
    later = policy(3, autoscaling=True, is_first=False)[0]
    assert size(later.make_decision_for_non_running_worker_group()) == 2
    cluster.nodes["a and b"] = {"CPU": 0}
    assert size(later.make_decision_for_non_running_worker_group()) is None, "one has come since"


def test_where_nobody_adds_nodes_a_start_waits_for_none(cluster: Cluster) -> None:
    cluster.nodes = {"a": {"CPU": 1}}
    assert size(policy(3)[0].make_decision_for_non_running_worker_group()) == 1


@pytest.mark.parametrize(("cpus", "size_"), [(1, 1), (3, 3), (7, 4), (8, 8), (99, 8)])
def test_a_group_starts_at_the_largest_useful_size(cluster: Cluster, cpus: int, size_: int) -> None:
    cluster.nodes = {"a": {"CPU": cpus}}
    assert size(policy(8)[0].make_decision_for_non_running_worker_group()) == size_


def test_workers_are_whole_on_each_node(cluster: Cluster) -> None:
    cluster.nodes = {name: {"CPU": 1.5} for name in "abc"}
    assert size(policy(8)[0].make_decision_for_non_running_worker_group()) == 3


def test_tenths_of_a_cpu_are_counted_exactly(cluster: Cluster) -> None:
    cluster.nodes = {"a": {"CPU": 0.3}, "b": {"CPU": 1.0}}  # in floats 0.3 / 0.1 is less than 3
    assert size(policy(13, blocks=13, cpus=0.1)[0].make_decision_for_non_running_worker_group()) == 13


def test_too_small_a_cluster_waits(cluster: Cluster) -> None:
    cluster.nodes = {"a": {"CPU": 2}}
    assert isinstance(policy(8, smallest=3)[0].make_decision_for_non_running_worker_group(), NoopDecision)


def test_cpus_of_the_data_stages_are_left_to_them(cluster: Cluster) -> None:
    cluster.nodes = {"a": {"CPU": 4}}
    few = policy(8, data_cpus=1.5)[0]
    assert size(few.make_decision_for_non_running_worker_group()) == 2
    assert few._get_num_workers_for_resource_request() == 2


def test_where_not_even_the_fewest_fit_beside_data_the_cpus_of_both_are_asked_for(cluster: Cluster) -> None:
    """Or the autoscaler, which sees that they would fit alone, adds no node, and nobody ever begins."""
    cluster.nodes = {"a": {"CPU": 1.0}}
    waiting = policy(3, cpus=0.5, data_cpus=0.9)[0]
    assert isinstance(waiting.make_decision_for_non_running_worker_group(), NoopDecision)
    assert waiting._get_num_workers_for_resource_request() * 0.5 >= 0.5 + 0.9
    cluster.nodes["b"] = {"CPU": 1.0}
    assert size(waiting.make_decision_for_non_running_worker_group()) == 2
    assert waiting._get_num_workers_for_resource_request() == 2


@pytest.mark.parametrize(("nodes", "asked", "begun"), [(1, 3, None), (2, 5, 2), (3, 8, 4), (4, 9, 4), (5, 8, 8)])
def test_an_autoscaler_is_asked_for_one_node_more_until_the_most_fit_beside_data(
    cluster: Cluster, nodes: int, asked: int, begun: int | None
) -> None:
    """It adds nothing for what fits, and nothing for more than it may have: it grants a request whole or not at all."""
    cluster.nodes = {name: {"CPU": 1.0} for name in "abcde"[:nodes]}
    cluster.nodes |= {"head": {"CPU": 0.0}, "gone": {"CPU": 9.0}}
    cluster.dead = {"gone"}
    growing = policy(8, cpus=0.5, data_cpus=0.9, autoscaling=True)[0]
    assert first_start(growing, cluster) == begun
    assert growing._get_num_workers_for_resource_request() == asked


def test_without_an_autoscaler_nobody_is_asked_for_more(cluster: Cluster) -> None:
    cluster.nodes = {"a": {"CPU": 1.0}, "b": {"CPU": 1.0}}
    assert policy(3, cpus=0.5, data_cpus=0.9)[0]._get_num_workers_for_resource_request() == 2


def test_data_on_nodes_of_its_own_takes_nothing_from_trainers(cluster: Cluster) -> None:
    """So they ask for as many as there may be, and the autoscaler adds nodes for those that do not fit yet."""
    cluster.nodes, cluster.for_data = {"a": {"CPU": 4}, "b": {"CPU": 8}}, {"b"}
    few = policy(8, data_cpus=1.5, data_nodes="data")[0]
    assert size(few.make_decision_for_non_running_worker_group()) == 4
    assert few._get_num_workers_for_resource_request() == 8
    assert few._beside_data() == 4


def test_gpus_are_asked_for_up_to_the_largest_useful_size(cluster: Cluster) -> None:
    """The autoscaler adds nodes for what is asked, so a cluster of CPUs must not limit it."""
    cluster.nodes = {"a": {"CPU": 1}}
    assert policy(7, use_gpu=True)[0]._get_num_workers_for_resource_request() == 4


@pytest.mark.parametrize("of", ["gpus", "data's own nodes"])
def test_less_is_asked_for_where_the_most_brings_no_node(cluster: Cluster, of: str) -> None:
    """Ray's autoscaler grants a request whole or not at all; what runs on nodes that are there does not count."""
    own = {"CPU": 1.0, "GPU": 1.0} if of == "gpus" else {"CPU": 1.0}
    elastic, driver = policy(8, use_gpu=of == "gpus", data_nodes="data", autoscaling=True)
    cluster.nodes, cluster.for_data = {"of data": {"CPU": 64.0, "GPU": 64.0}}, {"of data"}
    seen = []
    for cluster.now_s in (0, 299, 300, 600, 601):
        if cluster.now_s == 601:
            cluster.nodes |= {"a": own, "b": own}
        seen.append(elastic._get_num_workers_for_resource_request())
    assert seen == [8, 8, 3, 2, 8] and first_start(elastic, cluster) == 2
    for cluster.now_s in (901, 1201, 1501, 1801):
        assert elastic._get_num_workers_for_resource_request() > 2, "what it has must stay reserved"
    (told,) = driver.told
    assert "8 workers were asked for, so 3" in told and "ray status" in told


def test_where_nobody_adds_nodes_the_request_stays_the_most(cluster: Cluster) -> None:
    elastic, driver = policy(8, use_gpu=True)
    for cluster.now_s in (0, 300, 600):
        assert elastic._get_num_workers_for_resource_request() == 8
    assert not driver.told


def test_a_request_that_has_changed_is_sent_at_once_and_no_other(cluster: Cluster) -> None:
    cluster.nodes = {"a": {"CPU": 1.0}}
    elastic = policy(8, autoscaling=True)[0]
    for nodes in ("a", "a", "ab", "ab", "abc"):
        cluster.nodes = {name: {"CPU": 1.0} for name in nodes}
        running(elastic, 1)
    assert cluster.sent == [2, 3, 4]


def test_ray_s_coordinator_looks_at_once_when_nodes_come_or_go(cluster: Cluster) -> None:
    cluster.nodes = {"a": {"CPU": 1.0}}
    elastic = policy(8)[0]
    elastic.make_decision_for_non_running_worker_group()
    running(elastic, 1)
    elastic._latest_reserved_resources_query_time = 123.0
    running(elastic, 1)
    assert elastic._latest_reserved_resources_query_time == 123.0
    cluster.nodes["b"] = {"CPU": 1.0}
    running(elastic, 1)
    assert elastic._latest_reserved_resources_query_time == float("-inf"), "the new answer is asked for"
    running(elastic, 1)
    cluster.dead = {"a"}
    running(elastic, 1)
    assert cluster.looked_at == [{"a"}, {"a", "b"}, {"b"}]


def test_a_coordinator_that_does_not_answer_is_asked_again(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    def late(answer: Any, timeout: float) -> None:
        raise ray.exceptions.GetTimeoutError

    cluster.nodes = {"a": {"CPU": 1.0}}
    elastic = policy(8)[0]
    monkeypatch.setattr(ray, "get", late)
    running(elastic, 1)
    monkeypatch.setattr(ray, "get", lambda answer, timeout: answer)
    for _ in range(2):
        running(elastic, 1)
    assert len(cluster.looked_at) == 2


def test_growth_asks_for_a_checkpoint_and_follows_it(cluster: Cluster) -> None:
    cluster.nodes = {name: {"CPU": 1} for name in "abcd"}
    elastic, driver = policy(8)
    seen: list[tuple[int | None, int, int]] = []
    for cluster.now_s, driver.step in ((0, 20), (9, 30), (10, 40), (11, 40), (12, 47)):
        seen.append((size(running(elastic, 2)), driver.asked, driver.forgotten))
    assert seen == [(None, 0, 0), (None, 0, 0), (None, 1, 0), (None, 1, 0), (4, 1, 1)]


def test_workers_that_have_not_begun_are_not_waited_for(cluster: Cluster) -> None:
    cluster.nodes = {name: {"CPU": 1} for name in "abcd"}
    elastic, driver = policy(8)
    driver.begun, seen = False, list[int | None]()
    for cluster.now_s in (0, 9, 10):
        seen.append(size(running(elastic, 2)))
    assert (seen, driver.asked, driver.held) == ([None, None, 4], 0, ["00", "01"])
    elastic.make_decision_for_non_running_worker_group()
    assert elastic.gate.wait_s == 2 * STABLE_S, "it counts as a growth"


def test_a_recorder_that_does_not_answer_is_asked_for_a_checkpoint(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.nodes = {name: {"CPU": 1} for name in "abcd"}
    elastic, driver = policy(8)
    driver.begun = False
    running(elastic, 2)
    cluster.now_s = STABLE_S

    def late(answer: Any, timeout: float) -> None:
        raise ray.exceptions.GetTimeoutError

    monkeypatch.setattr(ray, "get", late)
    assert size(running(elastic, 2)) is None and driver.asked == 1


def test_a_checkpoint_that_was_asked_of_workers_that_are_lost_is_not_asked_of_the_next(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.nodes = {name: {"CPU": 1} for name in "abcd"}
    elastic, driver = policy(8)
    elastic.make_decision_for_non_running_worker_group()
    assert driver.forgotten == 0
    for cluster.now_s in (0, 10):
        running(elastic, 2)
    for _ in range(3):
        elastic.make_decision_for_non_running_worker_group()
    assert (driver.asked, driver.forgotten) == (1, 1)
    monkeypatch.setattr(ElasticScalingPolicy, "after_controller_start", lambda _self, context: None)
    elastic.after_controller_start(SimpleNamespace(run_id="of Ray's"))
    assert driver.forgotten == 2, "the segment before may have ended with one asked for"


def test_a_running_group_stays_while_the_coordinator_is_silent(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ElasticScalingPolicy, "_get_reserved_resources", lambda _self: None)
    assert isinstance(running(policy(8)[0], 2), NoopDecision)


def test_a_group_whose_data_starves_shrinks(cluster: Cluster) -> None:
    """A node died, and Ray's stale view had let the trainers take the CPUs of their own data."""
    cluster.nodes = {"a": {"CPU": 3}}
    elastic, _driver = policy(8, data_cpus=1.0)
    assert size(running(elastic, 3)) == 2


def test_a_growth_that_did_not_last_makes_the_next_one_wait_longer(cluster: Cluster) -> None:
    cluster.nodes = {name: {"CPU": 1} for name in "abcd"}
    elastic, driver = policy(8)
    for cluster.now_s, driver.step in ((0, 20), (10, 20), (11, 21)):
        running(elastic, 2)
    elastic.make_decision_for_non_running_worker_group()
    assert elastic.gate.wait_s == 2 * STABLE_S


# ------------------------------------------------------------------------------------------- what is used of Ray 2.60


def test_ray_s_policy_has_what_ours_overrides_and_calls() -> None:
    ours = {name for name, value in vars(UsefulSizes).items() if inspect.isfunction(value)} - {"__init__"}
    ours -= {"_beside_data", "_one_node_more", "_what_is_granted", "_held", "_whole_workers", "_hold", "_unused"}
    overridden = ours - {"_waits_for_the_next"}
    assert {n: list(inspect.signature(getattr(ElasticScalingPolicy, n)).parameters) for n in overridden} == {
        n: list(inspect.signature(getattr(UsefulSizes, n)).parameters) for n in overridden
    }
    for name in ("_send_resource_request", "_get_resize_decision"):
        assert callable(getattr(ElasticScalingPolicy, name))
    assert isinstance(ElasticScalingPolicy._autoscaling_coordinator, property)
    assert "recompute" in inspect.signature(_AutoscalingCoordinatorActor.get_reserved_resources).parameters
    fresh = ElasticScalingPolicy(ScalingConfig(num_workers=2))
    assert fresh._latest_reserved_resources_query_time == float("-inf")
    assert ScalingConfig(num_workers=2)._resources_per_worker_not_none == {"CPU": 1}


def test_ray_makes_the_policy_where_ours_is_put_in_its_place(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = inspect.getsource(DataParallelTrainer.fit)
    assert "_initialize_and_run_controller(" in source and "scaling_policy=" in source
    given: dict[str, Any] = {}
    monkeypatch.setattr(TorchTrainer, "_initialize_and_run_controller", lambda _self, **kwargs: given.update(kwargs))
    elastic, _driver = policy(4)
    trainer = object.__new__(PolicyTorchTrainer)
    trainer.scaling_policy = elastic
    trainer._initialize_and_run_controller(scaling_policy="ray's", train_fn=print)
    assert given == {"scaling_policy": elastic, "train_fn": print}


def test_draining_nodes_are_told_by_id() -> None:
    assert {"get_draining_nodes", "available_resources_per_node"} <= set(dir(ray._private.state.GlobalState))
    assert callable(ray._private.state.available_resources_per_node)
