"""The job as a program: killed and resumed, on other processes too, published, and what it says to bad input."""

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
from des_kit import write_market

from trainers.des.evaluate import auc
from trainers.des.export import base_rate_offset
from vitrine.artifacts import ArtifactStore
from vitrine.ctr import CtrModel
from vitrine.features import UserTowers

ROOT = Path(__file__).parents[2]
EPOCHS = 20


def _command(market: Path, out: Path, *flags: str, processes: int = 1) -> list[str]:
    launch = [sys.executable, "-m"]
    if processes > 1:
        launch += ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m"]
    sizes = ["--dim", "8", "--epochs", str(EPOCHS), "--batch", "32", "--pool", "16", "--checkpoint-every", "20"]
    return [*launch, "trainers.des", "--market", str(market), "--store", str(out / "store"), *sizes, *flags]


def _env() -> dict[str, str]:
    return os.environ | {"OMP_NUM_THREADS": "1", "VITRINE_PROGRESS": "json"}


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, cwd=ROOT, env=_env(), capture_output=True, text=True, timeout=120)


def _result(done: subprocess.CompletedProcess[str]) -> dict:
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def _model(out: Path) -> CtrModel:
    return CtrModel.load(ArtifactStore(str(out / "store")).fetch("ctr-model", max_schema=1).path)


def _checkpoints(work: Path) -> list[Path]:
    return sorted(work.glob("step-*"))


@pytest.fixture(scope="module")
def market(tmp_path_factory) -> Path:
    return write_market(tmp_path_factory.mktemp("market") / "market", users=60)


@pytest.fixture(scope="module")
def undisturbed(market, tmp_path_factory) -> tuple[Path, subprocess.CompletedProcess[str]]:
    out = tmp_path_factory.mktemp("undisturbed")
    return out, _run(_command(market, out))


@pytest.fixture(scope="module")
def killed(market, tmp_path_factory) -> Path:
    """The work folder of a run that was killed with -9 after its first checkpoints."""
    out = tmp_path_factory.mktemp("killed")
    process = subprocess.Popen(
        _command(market, out, "--work", str(out / "work")), cwd=ROOT, env=_env(), stdout=subprocess.DEVNULL
    )
    try:
        while len(_checkpoints(out / "work")) < 2:
            assert process.poll() is None, "the run ended before it could be killed"
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    return out


def test_a_run_publishes_a_model_and_the_towers_cut_from_it(undisturbed):
    out, done = undisturbed
    said = _result(done)
    store = ArtifactStore(str(out / "store"))
    whole, cut = store.manifest("ctr-model"), store.manifest("towers")
    assert said["artifacts"] == {"ctr-model": whole.version, "towers": cut.version}
    assert cut.parents == {"ctr-model": whole.version}
    wanted = {"ctr_auc", "auc_by_popularity", "auc_by_crowd_overlap", "loss", "examples", "examples_per_s"}
    assert wanted | {"bytes_per_example"} <= whole.metrics.keys()
    assert whole.metrics == cut.metrics == said["metrics"]
    assert whole.metrics["ctr_auc"] > 0.75  # the market's groups can be learned
    assert whole.metrics["steps_resumed"] == 0

    model, towers = _model(out), UserTowers.load(store.fetch("towers", max_schema=1).path)
    again = model.towers()
    assert np.isin(towers.user_keys, model.keys).all()
    assert len(towers.user_keys) < len(model.keys)
    assert towers.ad_vecs.tobytes() == again.ad_vecs.tobytes()
    assert towers.ad_bias.tobytes() == again.ad_bias.tobytes()
    keys, x = towers.user_keys[:9], np.linspace(0.1, 1, 9, dtype=np.float32)
    assert towers.user(keys, x)[0] == again.user(keys, x)[0]


def test_progress_comes_as_json_with_loss_and_auc(undisturbed):
    lines = [json.loads(line) for line in undisturbed[1].stdout.splitlines()[:-1]]
    assert {line["job"] for line in lines} == {"des"}
    assert lines[-1]["step"] == lines[-1]["total"]
    assert {"loss", "auc"} <= lines[-1]["metrics"].keys()


def test_a_killed_run_goes_on_to_the_very_weights_of_an_undisturbed_one(market, undisturbed, killed, tmp_path):
    shutil.copytree(killed / "work", tmp_path / "work")
    said = _result(_run(_command(market, tmp_path, "--work", str(tmp_path / "work"))))
    assert said["metrics"]["steps_resumed"] >= 20
    whole, resumed = _model(undisturbed[0]), _model(tmp_path)
    assert resumed.bias == whole.bias
    for name in ("keys", "w", "v"):
        assert getattr(resumed, name).tobytes() == getattr(whole, name).tobytes()
    assert _checkpoints(tmp_path / "work") == []


def test_a_killed_run_goes_on_with_another_number_of_processes(market, undisturbed, killed, tmp_path):
    shutil.copytree(killed / "work", tmp_path / "work")
    said = _result(_run(_command(market, tmp_path, "--work", str(tmp_path / "work"), processes=2)))
    assert said["metrics"]["steps_resumed"] >= 20
    assert said["metrics"]["processes"] == 2
    assert said["metrics"]["bytes_per_example"] > 0
    whole, resumed = _model(undisturbed[0]), _model(tmp_path)
    assert np.array_equal(resumed.keys, whole.keys)
    np.testing.assert_allclose(resumed.v, whole.v, atol=0.02)  # float32, summed in another order


def test_a_checkpoint_of_another_configuration_is_refused_with_the_way_out(market, killed, tmp_path):
    shutil.copytree(killed / "work", tmp_path / "work")
    done = _run(_command(market, tmp_path, "--work", str(tmp_path / "work"), "--seed", "9"))
    assert done.returncode == 1
    assert "--work" in done.stderr
    assert "Traceback" not in done.stderr


def test_an_interrupt_ends_the_run_without_a_traceback(market, tmp_path):
    process = subprocess.Popen(
        _command(market, tmp_path, "--work", str(tmp_path / "work")),
        cwd=ROOT, env=_env(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    try:
        while not _checkpoints(tmp_path / "work"):
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert "Traceback" not in stderr


@pytest.mark.skipif(sys.platform != "linux", reason="the parent-death signal is Linux's")
def test_a_killed_torchrun_takes_its_workers_along(market, tmp_path):
    command = _command(market, tmp_path, "--work", str(tmp_path / "work"), "--epochs", "2000", processes=2)
    torchrun = subprocess.Popen(command, cwd=ROOT, env=_env(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    workers = []
    try:
        while not _checkpoints(tmp_path / "work"):
            assert torchrun.poll() is None
            time.sleep(0.01)
        workers = psutil.Process(torchrun.pid).children(recursive=True)
        assert len(workers) >= 2
        torchrun.kill()
        torchrun.wait()
        _, alive = psutil.wait_procs(workers, timeout=20)
        assert alive == []
    finally:
        for process in (torchrun, *workers):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        torchrun.wait()


def test_a_folder_that_is_no_market_is_refused_by_file(tmp_path):
    done = _run(_command(tmp_path, tmp_path))
    assert done.returncode == 1
    assert "events.parquet" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_store_that_cannot_be_written_is_told_without_a_traceback(market, tmp_path):
    (tmp_path / "store").write_text("a file")
    done = _run(_command(market, tmp_path, "--epochs", "1"))
    assert done.returncode == 1
    assert str(tmp_path / "store") in done.stderr
    assert "Traceback" not in done.stderr


def test_auc_counts_pairs_and_ties_by_half():
    rng = np.random.default_rng(0)
    positives, negatives = rng.integers(0, 6, 50).astype(float), rng.integers(0, 5, 70).astype(float)
    pairs = (positives[:, None] > negatives).mean() + (positives[:, None] == negatives).mean() / 2
    assert auc(positives, negatives) == pytest.approx(pairs)


def test_the_base_rate_is_what_an_ad_without_appeal_of_its_own_gets():
    negatives, rate = 4.0, 0.03
    indifferent = np.log(1 / negatives)  # log odds after training: one click to `negatives` drawn
    assert 1 / (1 + np.exp(-(indifferent + base_rate_offset(rate, negatives)))) == pytest.approx(rate)
