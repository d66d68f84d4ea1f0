"""A graph built as Ray tasks on several machines: one of them dies in the middle, and no byte differs."""

import os
import shutil
import tempfile

import pytest

from tests.unit.test_graph_build import SMALL, clustered, digest
from vitrine.ann.build import build, collapse

os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"  # a cluster on loopback addresses; read as ray is imported
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
ray = pytest.importorskip("ray")


@pytest.fixture
def cluster(monkeypatch):
    """A Ray cluster of a head without CPUs and two raylets with one each, without a dashboard."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("PYTHONPATH", os.getcwd())
    folder = tempfile.mkdtemp(prefix="ray-")  # short: sockets are below it
    node = {"object_store_memory": 80 << 20, "node_ip_address": "127.0.0.1"}
    head = {
        **node, "num_cpus": 0, "include_dashboard": False, "temp_dir": folder,
        "_system_config": {
            "health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 4
        },
    }  # fmt: skip
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        cluster.add_node(num_cpus=1, **node)
        cluster.lost = cluster.add_node(num_cpus=1, **node)
        ray.init(address=cluster.address, log_to_driver=False)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_a_machine_that_dies_in_the_middle_of_a_build_changes_no_byte(cluster, tmp_path):
    from vitrine.ann.build.executors_ray import RayTasks

    rows = clustered(60_000)
    killed = []

    def kill(stage: str, share: float) -> None:
        if stage == "neighbours" and 0.2 < share < 1 and not killed:
            cluster.remove_node(cluster.lost, allow_graceful=False)
            killed.append(share)

    executor = RayTasks()
    assert executor.workers == 2
    built = build(rows, tmp_path / "ray", SMALL, executor=executor, progress=kill)
    assert killed
    assert digest(built) == digest(build(rows, tmp_path / "threads", SMALL))


@pytest.mark.slow
def test_what_a_task_raises_on_another_machine_is_raised_here(cluster, tmp_path):
    from vitrine.ann.build.executors_ray import RayTasks

    done = []
    with pytest.raises(FileNotFoundError, match=r"rows\.npy"):
        RayTasks().run(collapse.prepare, tmp_path, [(), ()], done.append)
    assert not done
