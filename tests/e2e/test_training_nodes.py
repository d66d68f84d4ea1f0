"""The Job's and the TrainJob's command lines: two torchruns, as on two nodes, train one model together."""

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.deploy_kit import ROOT
from tests.k8s_kit import K8S, combined, kustomize, pick
from vitrine.artifacts import ArtifactStore
from vitrine.data import simulator
from vitrine.runtime.local_servers import free_ports
from vitrine.runtime.process import spawn, stop

BIN = Path(sys.executable).parent


@pytest.fixture(scope="module")
def market(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nodes") / "market"
    simulator.write_market(folder, users=300, ads=100, seed=1)
    return folder


def indexed_job(_):
    """Arguments of the CronJob's container: the same for all its pods."""
    (job,) = pick(kustomize(K8S / "overlays" / "prod"), "CronJob", "train-des")
    return job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]["args"], {}


def trainjob(folder):
    """Arguments of the TrainJob, and what its controller sets for torchrun."""
    (job,) = pick(combined(folder, ["trainjob"]), "TrainJob", "train-des")
    trainer = job["spec"]["trainer"]
    controllers = {"PET_NNODES": trainer["numNodes"], "PET_NPROC_PER_NODE": trainer["numProcPerNode"]}
    return trainer["args"], {key: str(value) for key, value in controllers.items()}


class Nodes:
    """The pods of one job, here: started, started again where they end badly, and what they said."""

    def __init__(self, folder, market, told, *more):
        args, self._variables = told(folder / "kustomize")
        (self._port,) = free_ports(1)
        self.folder, self._market = folder, market
        self._command = [str(BIN / args[0]), *map(self._here, args[1:]), *more]
        self.started = [0, 0]
        self.running = [self._start(rank) for rank in range(2)]

    def _here(self, arg):
        arg = re.sub(r"\$\(JOB\)-0\.training:\d+", f"127.0.0.1:{self._port}", arg).replace("$(JOB)", "job")
        return arg.replace("=/market", f"={self._market}").replace("=/work", f"={self.folder}/work")

    def _start(self, rank):
        self.started[rank] += 1
        address = {"PET_MASTER_ADDR": "127.0.0.1", "PET_MASTER_PORT": str(self._port), "PET_NODE_RANK": str(rank)}
        env = os.environ | self._variables | (address if self._variables else {})
        env |= {"VITRINE_STORE": str(self.folder / "store"), "OMP_NUM_THREADS": "1", "VITRINE_PROGRESS": "json"}
        with (self.folder / f"{rank}.log").open("ab") as log:
            log.write(b"started\n")
            log.flush()
            return spawn(self._command, env=env, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT)

    def until_checkpoint(self):
        deadline = time.monotonic() + 120
        while not list(self.folder.glob("work/des/step-*")):
            assert time.monotonic() < deadline, self.said()
            time.sleep(0.1)

    def kill(self, rank):
        self.running[rank].kill()

    def until_done(self):
        """Restarts what fails, as kubelet does, until both have ended well."""
        deadline = time.monotonic() + 240
        while any(node.poll() != 0 for node in self.running):
            assert time.monotonic() < deadline, self.said()
            for rank, node in enumerate(self.running):
                if node.poll():
                    assert self.started[rank] < 4, self.said()
                    self.running[rank] = self._start(rank)
            time.sleep(0.2)

    def said(self):
        return "\n".join((self.folder / f"{rank}.log").read_text() for rank in range(2))

    def steps_of_the_last_life(self):
        """Steps that were shown since the nodes were started last; rank 0 shows them, on whichever node it is."""
        lives = [(self.folder / f"{rank}.log").read_text().rpartition("started\n")[2] for rank in range(2)]
        return [int(step) for life in lives for step in re.findall(r'"step": (\d+)', life)]

    def published(self):
        """{name: versions} of the store; the one result line names them."""
        results = [json.loads(line) for line in self.said().splitlines() if '"artifacts"' in line]
        (result,) = [line for line in results if "job" in line]
        store = ArtifactStore(self.folder / "store")
        found = {name: store.versions(name) for name in store.names()}
        assert found == {name: [version] for name, version in result["artifacts"].items()}
        return found

    def close(self):
        for node in self.running:
            stop(node, grace_s=2)


@pytest.fixture
def nodes(market, tmp_path):
    made = []

    def start(told, *more):
        made.append(Nodes(tmp_path, market, told, *more))
        return made[-1]

    yield start
    for each in made:
        each.close()


@pytest.mark.slow
@pytest.mark.parametrize("told", [indexed_job, trainjob])
def test_two_nodes_train_one_model_and_publish_it_once(told, nodes):
    job = nodes(told, "--epochs=1")
    job.until_done()
    assert job.started == [1, 1], job.said()
    assert set(job.published()) == {"ctr-model", "towers"}


@pytest.mark.slow
@pytest.mark.parametrize("lost", [0, 1])
def test_when_a_node_is_lost_all_are_started_again_and_go_on_from_the_checkpoint(lost, nodes):
    job = nodes(indexed_job, "--epochs=40", "--checkpoint-every=5")
    job.until_checkpoint()
    job.kill(lost)
    job.until_done()
    assert job.started == [2, 2], job.said()
    assert min(job.steps_of_the_last_life()) >= 5
    assert set(job.published()) == {"ctr-model", "towers"}
