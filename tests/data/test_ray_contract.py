"""What the stream needs of Ray 2.60, private settings included: each default that must be changed, seen to matter.

One plain cluster in a process of its own; the scripts print what they saw.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray.data import DataContext
from ray.data._internal.execution.backpressure_policy import (
    ENABLED_BACKPRESSURE_POLICIES,
    ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY,
)

from pretrainer.data.draining import WorkOn
from pretrainer.data.lookahead import LookAhead
from pretrainer.data.pace import Rest
from pretrainer.data.pipeline import STRETCHES, configure_context, cut_into_stretches, in_order, small_cpus
from pretrainer.data.reservation import OneTaskOfEach
from tests.data.driver import Driver, saw_alone
from tests.e2e.head import Head


@pytest.fixture(scope="module")
def driver(head: Head, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Driver]:
    driver = Driver(head, tmp_path_factory.mktemp("driver") / "stderr")
    yield driver
    driver.process.kill()
    driver.process.wait()


def test_one_byte_blocks_make_every_row_a_block_and_deal_them_round_robin(driver: Driver) -> None:
    blocks = driver.saw("""
context.target_max_block_size = 1
ds = rows(20).map_batches(count_up, batch_size=1, batch_format="pyarrow", num_cpus=0.01)
print(json.dumps(split(ds, 3, equal=False)))
""")  # fmt: skip
    assert blocks == [[[i] for i in range(rank, 20, 3)] for rank in range(3)]


def test_default_block_size_would_merge_rows(driver: Driver) -> None:
    blocks = driver.saw("""
ds = rows(20).map_batches(count_up, batch_size=1, batch_format="pyarrow", num_cpus=0.01)
print(json.dumps([t.column("i").to_pylist() for t in ds.iter_batches(batch_size=None, batch_format="pyarrow")]))
""")  # fmt: skip
    assert blocks == [list(range(20))]


def test_equal_split_would_drop_blocks(driver: Driver) -> None:
    blocks = driver.saw("""
context.target_max_block_size = 1
ds = rows(20).map_batches(count_up, batch_size=1, batch_format="pyarrow", num_cpus=0.01)
print(json.dumps(split(ds, 3, equal=True)))
""")  # fmt: skip
    assert sorted(i for rank in blocks for block in rank for i in block) != list(range(20))


def test_mix_deals_the_pattern(driver: Driver) -> None:
    from pretrainer.data.mixture import make_mixture

    mixture = make_mixture([0.7, 0.2, 0.1], 16)
    dealt = driver.saw(f"""
context.target_max_block_size = 1
def source(k):
    def named(table):
        for i in range(200):
            yield pa.table({{"i": [k * 1000 + i]}})
    return rows(1).map_batches(named, batch_size=1, batch_format="pyarrow", num_cpus=0.01)
ds = source(0).mix(source(1), source(2), weights={[float(s) for s in mixture.shares]},
                   stopping_condition=ray.data.MixStoppingCondition.STOP_ON_SHORTEST)
print(json.dumps([t.column("i")[0].as_py() for t in ds.iter_batches(batch_size=None, batch_format="pyarrow")][:64]))
""")  # fmt: skip
    assert [divmod(i, 1000) for i in dealt] == [mixture.expected(b) for b in range(64)]


def test_in_order_stages_are_pools_of_one_and_not_fused(driver: Driver) -> None:
    plan = driver.saw("""
from pretrainer.data.pipeline import in_order, ONE_CHUNK, small_cpus
class Stage:
    def __call__(self, table): return table
ds = (rows(3).map_batches(count_up, batch_size=1, batch_format="pyarrow", num_cpus=0.01)
      .map_batches(lambda t: t, num_cpus=0.25, **ONE_CHUNK).map_batches(Stage, **in_order(small_cpus(0.25)))
      .map_batches(lambda t: t, num_cpus=0.25, **ONE_CHUNK).map_batches(Stage, **in_order(small_cpus(0.25))))
from ray.data._internal.logical.optimizers import get_execution_plan
dag, ops = get_execution_plan(ds._logical_plan)[0].dag, []
while dag.input_dependencies:
    remote_args = getattr(dag, "_ray_remote_args", {})
    ops.append([type(dag).__name__, dag.name, str(remote_args.get("allow_out_of_order_execution"))])
    dag = dag.input_dependencies[0]
print(json.dumps(ops))
""")  # fmt: skip
    kinds = [kind for kind, _name, _order in plan]
    assert kinds == ["ActorPoolMapOperator", "TaskPoolMapOperator"] * 2 + ["TaskPoolMapOperator"]
    assert all("->" not in name for _kind, name, _order in plan)
    assert [order for kind, _name, order in plan if kind == "ActorPoolMapOperator"] == ["False", "False"]


@pytest.mark.parametrize("descriptors", [pytest.param(1_000, marks=pytest.mark.slow), 100_000])
def test_look_ahead_bounds_descriptors(head: Head, descriptors: int) -> None:
    """However many chunks there are, only a few descriptors exist before the first chunk is read."""
    made = saw_alone(head, f"""
from pretrainer.data import lookahead
from pretrainer.data.pipeline import ONE_CHUNK
context.target_max_block_size = 1
lookahead.install(context, 8, 64)
@ray.remote(num_cpus=0)
class Counter:
    def __init__(self): self.n = 0
    def add(self): self.n += 1
    def get(self): return self.n
counter = Counter.remote()
def expand_positions(table):
    for i in range(table.column("n")[0].as_py()):
        counter.add.remote()
        yield pa.table({{"i": [i]}})
def read_chunks(table):
    time.sleep(0.05)
    return table
class PackWindows:
    def __call__(self, table): return table
parts = [{{"n": max(1, {descriptors} // 256)}} for _ in range(256)]
ds = (ray.data.from_items(parts, override_num_blocks=256)
      .map_batches(expand_positions, batch_size=1, batch_format="pyarrow", num_cpus=0.01)
      .map_batches(read_chunks, num_cpus=0.25, **ONE_CHUNK)
      .map_batches(PackWindows, compute=ActorPoolStrategy(size=1), num_cpus=0.06, **ONE_CHUNK))
for n, _table in enumerate(ds.iter_batches(batch_size=None, batch_format="pyarrow")):
    if n == 20:
        # No shutdown: Ray 2.60 may crash where a cancelled task's inputs are just being inlined (ray pull 56123).
        print(json.dumps(ray.get(counter.get.remote())), flush=True)
        os._exit(0)
""")  # fmt: skip
    assert 20 <= made < 60 + 2 * max(1, descriptors // 256)


def test_blocks_of_one_call_of_the_packer_need_no_round_each(driver: Driver, tmp_path: Path) -> None:
    """By default a call waits at every second block until a round of the executor has fetched it: here the executor
    stands still after the first one."""
    ray_s_own, ours = driver.saw(f"""
from pathlib import Path
from pretrainer.data import lookahead
context.target_max_block_size = 1
stock = lookahead.LookAhead.can_add_input
def expand_positions(table): return table
def made_while_the_executor_stands(ahead, at_most_s):
    made, stood = Path({str(tmp_path)!r}) / str(ahead), []
    made.touch()
    class PackWindows:
        def __call__(self, table):
            for i in range(60):
                with made.open("a") as f:
                    f.write(".")
                yield pa.table({{"i": [i]}})
    def can_add_input(self, op):
        if made.stat().st_size and not stood:
            end = time.monotonic() + at_most_s
            while made.stat().st_size < 60 and time.monotonic() < end:
                time.sleep(0.01)
            stood.append(made.stat().st_size)
        return stock(self, op)
    lookahead.LookAhead.can_add_input = can_add_input
    lookahead.install(context, 8, ahead)
    ds = (rows(1).map_batches(expand_positions, batch_size=1, batch_format="pyarrow", num_cpus=0.01)
          .map_batches(PackWindows, batch_size=1, batch_format="pyarrow", num_cpus=0.06,
                       compute=ActorPoolStrategy(size=1)))
    assert len(list(ds.iter_batches(batch_size=None, batch_format="pyarrow"))) == 60
    return stood[0]
print(json.dumps([made_while_the_executor_stands(2, 2.0), made_while_the_executor_stands(64, 60.0)]))
""")  # fmt: skip
    assert ray_s_own < 30 and ours == 60, "a slow machine has made 10 before the executor stands"


def test_a_stream_has_the_cpus_of_one_task_of_each_stage_where_less_than_one_is_left(driver: Driver) -> None:
    """By default it shares what nobody asked for, in whole CPUs: nothing, where others ask for 3.5 of 4."""
    ray_s_own, ours = driver.saw("""
import tempfile
from ray.data._internal.cluster_autoscaler import DefaultAutoscalingCoordinator
from ray.data._internal.execution.execution_callback import ExecutionCallback
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import get_or_create_autoscaling_coordinator
from pretrainer.data import reservation
coordinator = get_or_create_autoscaling_coordinator()  # killed drivers of other tests have reserved for 180 s
ray.get(coordinator.__ray_call__.remote(lambda actor: actor._ongoing_reqs.clear()))
others = DefaultAutoscalingCoordinator(requester_id="train-others")
def limit(install, others_cpus):  # Ray asks once a second what it may use
    seen = []
    more = tempfile.mktemp()
    class Look(ExecutionCallback):
        def on_execution_step(self, executor):
            seen.append(executor._resource_manager.get_global_limits().cpu)
            if seen[-1] > 1: open(more, "w").close()
    def read(table):
        end = time.monotonic() + 4
        while time.monotonic() < end and not os.path.exists(more): time.sleep(0.1)
        return table
    class Pack:
        def __call__(self, table): return table
    context.custom_execution_callback_classes = [Look]
    install(context)
    others.request_resources(resources=[{"CPU": others_cpus}], expire_after_s=120)
    ds = (rows(1).map_batches(read, batch_size=1, batch_format="pyarrow", num_cpus=0.15)
          .map_batches(Pack, batch_size=1, batch_format="pyarrow", num_cpus=0.05, compute=ActorPoolStrategy(size=1)))
    assert len(list(ds.iter_batches(batch_size=None, batch_format="pyarrow"))) == 1
    others.cancel_request()
    return max(seen)
ours = [limit(reservation.install, cpus) for cpus in (3.5, 4.0)]
end = time.monotonic() + 240
while (free := limit(reservation.install, 0.01)) <= 1 and time.monotonic() < end: pass  # a longer run asks for more
ours.append(free)
print(json.dumps([limit(lambda context: None, 3.5), ours]))
""")  # fmt: skip
    assert ray_s_own == 0 and ours[:2] == pytest.approx([0.2, 0.2])
    assert ours[2] > 1 and ours[2] % 1 == pytest.approx(0.2), "asked for, so whole CPUs of what is left come on top"


def test_a_living_node_s_raylet_lets_everybody_connect(driver: Driver) -> None:
    """What a start counts on (pretrainer/train/elasticity/elastic.py, silent)."""
    answers = driver.saw("""
from pretrainer.train.elasticity import elastic
print(json.dumps([elastic._answers(node) for node in ray.nodes()]))
""")  # fmt: skip
    assert answers == [True]


def test_the_executor_rests_while_its_reader_does(driver: Driver) -> None:
    """By default its loop spins whenever no task runs; ours rests the longer the less there is to hand on."""
    ray_s_own, ours = driver.saw("""
from ray.data._internal.execution.execution_callback import ExecutionCallback
from pretrainer.data import lookahead, pace
class PackWindows:
    def __call__(self, table): return table
def rounds_per_block(install):
    rounds = []
    class Look(ExecutionCallback):
        def on_execution_step(self, executor): rounds.append(time.monotonic())
    context.custom_execution_callback_classes = [Look]
    lookahead.install(context, 8, 4)
    install(context)
    ds = (ray.data.from_items([{"i": i} for i in range(40)], override_num_blocks=40)
          .map_batches(PackWindows, batch_size=1, batch_format="pyarrow", num_cpus=0.05,
                       compute=ActorPoolStrategy(size=1)))
    seen = []
    for table in ds.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=0):
        seen += table.column("i").to_pylist()
        if len(seen) == 10: begun = time.monotonic()
        if len(seen) == 20: ended = time.monotonic()
        time.sleep(0.2 if 10 <= len(seen) < 20 else 0)
    assert seen == list(range(40))
    return sum(begun < at < ended for at in rounds) / 10
print(json.dumps([rounds_per_block(lambda context: None), rounds_per_block(pace.install)]))
""")  # fmt: skip
    assert ours < 8 and ray_s_own > 2 * ours, "a block is read every 0.2 s"


def test_an_error_of_ours_in_a_stage_is_found_in_what_its_reader_gets(driver: Driver) -> None:
    """Ray Data's wrapper brings what a stage raises as text, without its cause: this is where its form is held to."""
    found = driver.saw("""
from pretrainer.errors import BadDataError, find_cause
def fail(table): raise BadDataError("60 of 107 records are unreadable")
[shard] = rows(1).map_batches(fail, batch_format="pyarrow").streaming_split(1)
try:
    next(iter(shard.iter_batches(batch_size=None, batch_format="pyarrow")))
except ray.exceptions.RayError as error:
    cause = find_cause(error)
    print(json.dumps([type(cause).__name__, str(cause)]))
""")  # fmt: skip
    assert found == ["BadDataError", "60 of 107 records are unreadable"]


def test_an_in_order_stage_works_on_while_its_node_has_notice(head: Head) -> None:
    """Ray gives actors there no task; where a pool has no other, the stream stands still until the node is gone."""
    ray_s_own, ours = saw_alone(head, """
from ray.data._internal.execution.operators import actor_pool_map_operator as pools
from pretrainer.data import draining
here = ray.get_runtime_context().get_node_id()
pools.get_draining_nodes = lambda: {here: 0}
class InOrder:
    def __call__(self, table): return table
def read(seen, patience_s):
    ds = (ray.data.from_items([{"i": i} for i in range(4)], override_num_blocks=4)
          .map_batches(InOrder, batch_size=1, batch_format="pyarrow", num_cpus=0.05, compute=ActorPoolStrategy(size=1)))
    def work():
        for table in ds.iter_batches(batch_size=None, batch_format="pyarrow"):
            seen.extend(table.column("i").to_pylist())
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(patience_s)
    return seen
draining.install(context)
ours = read([], 120)
context.custom_execution_callback_classes.remove(draining.WorkOn)
print(json.dumps([read([], 10), ours]), flush=True)
os._exit(0)
""")  # fmt: skip
    assert ours == [0, 1, 2, 3] and ray_s_own == []


def test_workers_of_a_driver_s_tasks_serve_ray_train_too(head: Head) -> None:
    """Ray's pool goes by the text of the runtime environment: plain, its controller's differs from the job's."""
    ray_s_own, ours = saw_alone(head, """
from pipelines.driver import cli
from ray.train.v2._internal.constants import get_env_vars_to_propagate
os.environ["RAY_TRAIN_V2_ENABLED"] = "1"
class Controller:
    def environment(self): return ray.get_runtime_context().get_runtime_env_string()
def texts(environment):
    ray.shutdown()
    ray.init(runtime_env=environment, logging_level=40, log_to_driver=False)
    controller = {"env_vars": {**get_env_vars_to_propagate(), "RAY_WARN_BLOCKING_GET_INSIDE_ASYNC": "0"}}
    actors = [ray.remote(num_cpus=0, **options)(Controller).remote() for options in ({}, {"runtime_env": controller})]
    return ray.get([actor.environment.remote() for actor in actors])
plain = texts({"env_vars": {**cli.runtime_env()["env_vars"]}})
cli.share_workers()
print(json.dumps([plain, texts(cli.runtime_env())]))
""")  # fmt: skip
    assert ours[0] == ours[1] and ray_s_own[0] != ray_s_own[1] and [json.loads(text) for text in ray_s_own] == [
        json.loads(text) for text in ours
    ]  # fmt: skip


def test_a_run_s_next_start_takes_over_the_reservation_of_a_killed_one(driver: Driver) -> None:
    """Ray's own policy leaves it beside the new one for 180 s. A killed start cancels nothing, as here."""
    ray_s_own, ours = driver.saw("""
from ray.train import ScalingConfig
from ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator import get_or_create_autoscaling_coordinator
from ray.train.v2._internal.execution.scaling_policy import FixedScalingPolicy
from pretrainer.train.elasticity.elastic import FixedSize, UsefulSizes
coordinator = get_or_create_autoscaling_coordinator()
def reserved(*policies):
    for policy in policies:
        class Context: run_id = os.urandom(8).hex()
        policy.after_controller_start(Context())
    names = ray.get(coordinator.__ray_call__.remote(lambda self: list(self._ongoing_reqs)))
    names = [name for name in names if name.startswith("train-")]
    ray.get([coordinator.cancel_request.remote(name) for name in names])
    return names
def scaling(workers): return ScalingConfig(num_workers=workers, resources_per_worker={"CPU": 0.5})
ray_s_own = reserved(FixedScalingPolicy(scaling(1)), FixedScalingPolicy(scaling(1)))
from unittest.mock import Mock
elastic = UsefulSizes(scaling((1, 2)), "a run", [1, 2], 1.0, 0.5, Mock(), None)
print(json.dumps([ray_s_own, reserved(FixedSize(scaling(1), "a run"), FixedSize(scaling(1), "a run"), elastic)]))
""")  # fmt: skip
    assert len(ray_s_own) == 2 and ours == ["train-a run"]


def test_the_context_of_the_stream_differs_from_ray_s_defaults() -> None:
    before = DataContext.get_current().copy()
    try:
        assert before.execution_no_progress_timeout_s > 0
        configure_context(4, 64)
        assert DataContext.get_current().execution_no_progress_timeout_s == -1
        assert DataContext.get_current().execution_options.preserve_order
        assert DataContext.get_current().target_max_block_size == 1
        enabled = DataContext.get_current().get_config(ENABLED_BACKPRESSURE_POLICIES_CONFIG_KEY)
        assert DataContext.get_current().custom_execution_callback_classes == [OneTaskOfEach, Rest, WorkOn]
        assert LookAhead in enabled and set(ENABLED_BACKPRESSURE_POLICIES) < set(enabled)
        assert DataContext.get_current().execution_options.label_selector is None
        configure_context(8, 64)
        assert DataContext.get_current().custom_execution_callback_classes == [OneTaskOfEach, Rest, WorkOn], "once"
        configure_context(4, 64, {"ray-subcluster": "data"})
        assert DataContext.get_current().execution_options.label_selector == {"ray-subcluster": "data"}
    finally:
        DataContext._set_current(before)


@pytest.mark.parametrize("read_cpus", [0.01, 0.02, 0.03, 0.05, 0.07, 0.1, 0.15, 0.2, 0.25, 0.5, 1, 2])
@pytest.mark.parametrize("sources", [1, 2, 5])
def test_every_stage_gets_its_cpus_when_ray_has_just_their_sum(read_cpus: float, sources: int) -> None:
    """Ray's reservation: stage after stage the larger of its need and half of all over the stages, while it lasts."""
    small = small_cpus(read_cpus)
    needs = [small, read_cpus, small, read_cpus, small] * sources
    left = total = sum(needs)
    assert read_cpus != small and DataContext.get_current().op_resource_reservation_ratio == 0.5
    for need in needs:
        left -= max(need, 0.5 * total / len(needs))
        assert left > -1e-9


def test_in_order_stages_have_one_actor_and_one_call_in_flight() -> None:
    """By default Ray sends an actor several calls at once, which arrive displaced when their arguments are remote."""
    pool = in_order(0.05)["compute"]
    assert (pool.min_size, pool.max_size, pool.max_tasks_in_flight_per_actor) == (1, 1, 1)


@pytest.mark.parametrize(("first", "end"), [(0, 1), (0, 255), (0, 256), (0, 257), (3, 1000), (17, 1_000_003), (5, 5)])
def test_stretches_cover_every_position_once(first: int, end: int) -> None:
    stretches = cut_into_stretches(first, end)
    assert 1 <= len(stretches) <= STRETCHES
    assert [i for s in stretches for i in range(s["first"], s["end"])] == list(range(first, end))
