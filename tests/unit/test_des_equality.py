"""However many processes train, the weights are those of one, and of plain autograd on the whole model."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import des_member
import numpy as np
import pytest
import torch
from des_kit import write_market

from trainers.des import table
from trainers.des.batches import Batches

HERE = Path(__file__).parent
WORLDS = (1, 2, 3)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def _launch(market: Path, out: Path, world: int) -> list[subprocess.Popen]:
    together = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(world)}
    env = os.environ | {"PYTHONPATH": f"{HERE.parents[1]}{os.pathsep}{HERE}", "OMP_NUM_THREADS": "1"} | together
    command = [sys.executable, "-m", "des_member", str(market), str(out)]
    return [
        subprocess.Popen(command, env=env | {"RANK": str(rank), "LOCAL_RANK": str(rank)}) for rank in range(world)
    ]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """{(model, world): arrays of des_member} and the examples trained on."""
    out = tmp_path_factory.mktemp("equality")
    market = write_market(out / "market", users=25, items=40, crowds=8)
    started = []
    try:
        for world in WORLDS:
            started += _launch(market, out, world)
        assert [process.wait(120) for process in started] == [0] * len(started)
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()
                process.wait()
    tables = {(m, world): np.load(out / f"{m}-{world}.npz") for m in des_member.CONFIGS for world in WORLDS}
    return tables, des_member.build(market)


@pytest.mark.parametrize("world", WORLDS[1:])
@pytest.mark.parametrize("model", list(des_member.CONFIGS))
def test_several_processes_train_to_the_weights_of_one(trained, model, world):
    tables, _ = trained
    one, several = tables[model, 1], tables[model, world]
    for name in ("values", "bias", "losses"):
        np.testing.assert_allclose(several[name], one[name], rtol=0, atol=1e-9)
    assert np.array_equal(one["touched"], several["touched"])


@pytest.mark.parametrize("model", list(des_member.CONFIGS))
def test_the_weights_are_those_of_autograd_on_the_whole_model(trained, model):
    tables, built = trained
    values, bias, losses, touched = _plainly_trained(des_member.CONFIGS[model], built)
    got = tables[model, 2]
    np.testing.assert_allclose(got["values"], values, rtol=0, atol=1e-9)
    np.testing.assert_allclose(got["losses"], losses, rtol=0, atol=1e-9)
    assert got["bias"] == pytest.approx(bias, abs=1e-9)
    assert np.array_equal(got["touched"], touched)
    assert losses[-1] < losses[0]


def _plainly_trained(config, e):
    """Every pair a dense row of features, the logit by Rendle's eq. 1 in matrices, the gradient by autograd."""
    n = len(e.keys)
    dim = config.dim if config.model == "fm" else 0
    features = np.zeros((len(e.bags), n))
    for bag in range(len(e.bags)):
        at = slice(e.bags.indptr[bag], e.bags.indptr[bag + 1])
        features[bag, e.bags.ids[at]] = e.bags.x[at]
    features = torch.from_numpy(features)
    v = torch.from_numpy(table.initial_rows(e.keys, dim, config.seed, config.init_scale)).requires_grad_()
    w = torch.zeros(n, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros((), dtype=torch.float64, requires_grad=True)
    sums = {"v": torch.zeros(n, dtype=torch.float64), "w": torch.zeros(n, dtype=torch.float64), "bias": 0.0}
    touched = torch.zeros(n, dtype=torch.bool)
    batches = Batches(len(e.ad), e.popularity, config.batch, config.pool, config.epochs, config.seed)

    def logit(x):
        pairs = x @ v
        return bias + x @ w + ((pairs**2).sum(1) - (x**2 @ v**2).sum(1)) / 2

    losses = []
    for number in range(des_member.STEPS):
        batch = batches[number]
        loss = torch.zeros((), dtype=torch.float64)
        used = torch.zeros(n, dtype=torch.bool)
        for example in batch.examples:
            user, label, weight = features[example], float(e.label[example]), float(e.weight[example])
            own = user + features[e.ad_bags(e.ad[[example]])]
            drawn = user + features[e.ad_bags(batch.pool)]
            target = torch.full((1,), label, dtype=torch.float64)
            each = torch.nn.functional.binary_cross_entropy_with_logits(logit(own), target)
            none = torch.zeros(len(batch.pool), dtype=torch.float64)
            against = torch.nn.functional.binary_cross_entropy_with_logits(logit(drawn), none)
            loss = loss + weight * (each + label * config.negatives * against)
            used |= ((own != 0).any(0)) | ((drawn != 0).any(0))
        loss = loss / len(batch.examples)
        v.grad = w.grad = bias.grad = None
        loss.backward()
        losses.append(float(loss.detach()))
        with torch.no_grad():
            if dim:
                sums["v"][used] += (v.grad[used] ** 2).mean(1)
                v[used] -= config.lr * v.grad[used] / (sums["v"][used].sqrt() + 1e-10)[:, None]
            sums["w"][used] += w.grad[used] ** 2
            w[used] -= config.lr * w.grad[used] / (sums["w"][used].sqrt() + 1e-10)
            sums["bias"] += bias.grad**2
            bias -= config.lr * bias.grad / (sums["bias"].sqrt() + 1e-10)
        touched |= used
    rows = torch.cat([v, w[:, None]], dim=1).detach().numpy()
    return rows, float(bias.detach()), losses, touched.numpy()


def test_a_row_starts_from_its_key_and_the_seed_alone():
    keys = np.sort(np.random.default_rng(0).integers(1, 2**63, 200).astype(np.uint64) * np.uint64(2))
    whole = table.initial_rows(keys, 4, 7, 0.5)
    assert np.array_equal(table.initial_rows(keys[50:60], 4, 7, 0.5), whole[50:60])
    assert not np.any(table.initial_rows(keys, 4, 8, 0.5) == whole)
    assert whole.std() == pytest.approx(0.5, rel=0.05)
    assert abs(whole.mean()) < 0.05


@pytest.mark.parametrize("world", [1, 2, 3, 7, 256])
def test_processes_share_all_rows_and_no_row_twice(world):
    keys = np.unique(np.random.default_rng(1).integers(0, 2**64, 3000, dtype=np.uint64))
    shards = [table.Shard.of(keys, rank, world) for rank in range(world)]
    assert [s.stop for s in shards] == [*(s.start for s in shards[1:]), len(keys)]
    assert shards[0].start == 0
    for shard in shards:
        tops = keys[shard.start : shard.stop] >> np.uint64(56)
        assert np.all((tops >= shard.first) & (tops < shard.last))
