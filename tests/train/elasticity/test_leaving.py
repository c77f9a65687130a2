"""Nodes with notice, nodes that are gone, and what has come in their place.

python -m pytest -q tests/train/elasticity/test_leaving.py
"""

from __future__ import annotations

import socket
from typing import Any

import pytest
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import _AutoscalingCoordinatorActor
from ray.train.v2._internal.execution.scaling_policy import NoopDecision

from pretrainer.train.elasticity.elastic import silent
from tests.train.elasticity.cluster import Cluster, policy, running, size


def test_nodes_that_leave_or_are_dead_hold_no_workers(cluster: Cluster) -> None:
    cluster.nodes = {name: {"CPU": 1} for name in "abcd"}
    cluster.leaving, cluster.dead = {"b": 123}, {"d"}
    assert size(policy(8)[0].make_decision_for_non_running_worker_group()) == 2


@pytest.mark.parametrize(
    ("free", "begun"),
    [({"CPU": 0.9}, 3), ({"CPU": 0.5}, 2), ({}, 2)], ids=["nobody's", "another run's", "not seen yet"],
)  # fmt: skip
def test_what_is_reserved_on_a_node_that_leaves_may_be_had_on_the_one_that_has_come_for_it(
    cluster: Cluster, free: dict[str, float], begun: int
) -> None:
    """Ray's coordinator looks at a node that leaves as at any other, until it is gone."""
    cluster.nodes = {**{name: {"CPU": 1.0} for name in "abcd"}, "of data": {"CPU": 8.0}}
    cluster.leaving, cluster.for_data = {"a": 123}, {"of data"}
    cluster.reservation = {name: {"CPU": 0.6} for name in "abc"}
    cluster.free = {**{name: {"CPU": 1.0} for name in "abc"}, "d": free, "of data": {"CPU": 8.0}}
    elastic = policy(3, cpus=0.6, data_nodes="data")[0]
    assert size(elastic.make_decision_for_non_running_worker_group()) == begun
    cluster.leaving = {}
    assert size(elastic.make_decision_for_non_running_worker_group()) == 3


def test_no_more_than_what_is_reserved_on_nodes_that_leave_is_looked_for_elsewhere(cluster: Cluster) -> None:
    cluster.nodes = {"a": {"CPU": 1.0}, "b": {"CPU": 1.0}, "another run's in a moment": {"CPU": 8.0}}
    cluster.leaving, cluster.reservation = {"a": 123}, {"a": {"CPU": 1.0}, "b": {"CPU": 1.0}}
    cluster.free = cluster.nodes
    assert size(policy(8)[0].make_decision_for_non_running_worker_group()) == 2


def test_cpus_of_a_node_that_leaves_are_no_cpus_for_data(cluster: Cluster) -> None:
    cluster.nodes = {"a": {"CPU": 2.0}, "b": {"CPU": 2.0}}
    cluster.leaving = {"b": 123}
    assert size(policy(8, data_cpus=1.0)[0].make_decision_for_non_running_worker_group()) == 1
    cluster.leaving = {}
    assert size(policy(8, data_cpus=1.0)[0].make_decision_for_non_running_worker_group()) == 3


def test_a_node_of_data_that_leaves_and_one_that_has_left_take_nothing_from_trainers(cluster: Cluster) -> None:
    cluster.nodes = {"a": {"CPU": 4.0}, "of data": {"CPU": 2.0}, "dead": {"CPU": 3.0}}
    cluster.for_data, cluster.leaving, cluster.dead = {"of data"}, {"of data": 123, "dead": 123}, {"dead"}
    assert size(policy(8, data_nodes="data")[0].make_decision_for_non_running_worker_group()) == 4


def test_a_node_that_is_gone_is_not_counted_on_although_ray_has_not_noticed(cluster: Cluster) -> None:
    """A group of three would wait for its place on it until Ray's timeout."""
    cluster.nodes, cluster.gone = {name: {"CPU": 1} for name in "abc"}, {"b"}
    elastic = policy(3)[0]
    assert size(elastic.make_decision_for_non_running_worker_group()) == 2
    cluster.gone = set("abc")
    assert isinstance(elastic.make_decision_for_non_running_worker_group(), NoopDecision)
    cluster.gone = set()
    assert size(elastic.make_decision_for_non_running_worker_group()) == 3, "it was only slow to answer"


def test_a_group_grows_onto_a_node_that_did_not_answer_at_its_start(cluster: Cluster) -> None:
    cluster.nodes, cluster.gone = {"a": {"CPU": 1}, "b": {"CPU": 1}}, {"b"}
    elastic, driver = policy(2)
    assert size(elastic.make_decision_for_non_running_worker_group()) == 1
    seen = []
    for cluster.now_s, driver.step in ((0, 20), (10, 20), (11, 21)):
        seen.append(size(running(elastic, 1)))
    assert seen == [None, None, 2]


def test_who_lets_nobody_connect_is_silent() -> None:
    def node(name: str, listener: socket.socket) -> dict[str, Any]:
        address, port = listener.getsockname()
        return {"NodeID": name, "NodeManagerAddress": address, "NodeManagerPort": port}

    with socket.create_server(("127.0.0.1", 0)) as there, socket.create_server(("127.0.0.1", 0)) as gone:
        nodes = [node("there", there), node("gone", gone)]
        assert silent(nodes) == frozenset()
        gone.close()
        assert silent(nodes) == {"gone"} and silent([]) == frozenset()
        assert silent(nodes[1:]) == frozenset(), "who reaches nobody knows nothing"


def test_ray_s_coordinator_reserves_no_more_than_was_asked_and_goes_by_id() -> None:
    """So a node that has come for one that leaves holds nothing for us while the other one is there."""
    nodes = [{"NodeID": name, "Alive": True, "Resources": {"CPU": 1.0}, "Labels": {}} for name in "dcba"]
    coordinator = _AutoscalingCoordinatorActor(lambda: 0.0, lambda *_args, **_kwargs: None, lambda: nodes)
    coordinator.request_resources("a run", [{"CPU": 0.6}] * 3, expire_after_s=180)
    assert coordinator.get_reserved_resources("a run") == {name: {"CPU": 0.6} for name in "abc"}
