"""The picture encoder's training, each part against the plain computation."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import softmax_kit
import torch
import torch.nn.functional as F
from softmax_kit import CONFIG, drawn, steps, weights, write_images

from trainers.runtime.dist import Group
from trainers.softmax import evaluate, export, job
from trainers.softmax import images as reading
from trainers.softmax.augment import Ranges, augment
from trainers.softmax.model import Encoder, whiten
from trainers.softmax.muon import Muon, orthogonal
from trainers.softmax.train import Learner, schedule
from vitrine.ann import embeddings, pictures
from vitrine.ann import encoder as served
from vitrine.ann.embeddings import Embeddings
from vitrine.ann.pictures import SIDE
from vitrine.artifacts import ArtifactStore
from vitrine.data.schemas import DataError

ALONE = Group(0, 1, torch.device("cpu"))
ROOT = Path(__file__).resolve().parents[2]


def torchrun(processes: int, *arguments: str) -> None:
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*command, softmax_kit.__file__, *arguments],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stderr


def same(one: dict[str, np.ndarray], other: dict[str, np.ndarray], within: float) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert np.abs(one[name] - other[name]).max() <= within, name


def test_two_processes_learn_what_one_learns_and_one_resumes_what_two_began(tmp_path):
    torchrun(2, str(tmp_path / "two.npz"), "8", str(tmp_path / "checkpoints"))
    same(dict(np.load(tmp_path / "two.npz")), weights(steps(ALONE, 8)), 1e-9)
    resumed = steps(ALONE, 11, tmp_path / "checkpoints")
    same(weights(resumed), weights(steps(ALONE, 11)), 1e-9)


def test_a_resumed_training_ends_at_the_same_bits(tmp_path):
    steps(ALONE, 4, tmp_path)
    same(weights(steps(ALONE, 9, tmp_path)), weights(steps(ALONE, 9)), 0)


def test_one_step_is_the_plain_gradient_step_of_the_batch():
    images = drawn()
    learner = Learner(images, CONFIG, ALONE, dtype=torch.float64)
    before = {name: weight.detach().clone().requires_grad_() for name, weight in learner.net.named_parameters()}
    rows = learner.batch(0)
    seen = augment(images.pixels[rows], rows, seed=CONFIG.seed, epoch=0).double()
    features = torch.func.functional_call(
        learner.encoder, {k[8:]: v for k, v in before.items() if k[:8] == "encoder."}, seen
    )
    loss = F.cross_entropy(
        features @ before["head.weight"].T, torch.from_numpy(images.labels[rows]), label_smoothing=CONFIG.smoothing
    )
    loss.backward()
    assert learner.step(0) == pytest.approx(loss.item(), abs=1e-12)
    for name, weight in learner.net.named_parameters():
        assert torch.allclose(weight.grad, before[name].grad, atol=1e-12), name


def test_an_epoch_sees_every_training_picture_once_in_an_order_of_its_own():
    learner = Learner(drawn(45), CONFIG, ALONE)  # 31 training pictures, batches of 9: 27 an epoch
    epochs = [np.concatenate([learner.batch(e * 3 + i) for i in range(3)]) for e in range(3)]
    for rows in epochs:
        assert len(set(rows)) == 27
        assert (learner.images.split[rows] == "train").all()
    assert not np.array_equal(epochs[0], epochs[1])


def test_training_learns_what_the_shapes_are():
    images = drawn(200)
    learner = Learner(images, CONFIG.__class__(epochs=12, batch=16, dim=8), ALONE)
    first = learner.step(0)
    for step in range(1, learner.steps):
        last = learner.step(step)
    rows = images.rows("test")
    assert last < 0.75 * first
    assert learner.accuracy(learner.embed(rows), rows) > 0.8


def test_the_rates_rise_and_fall_to_nothing():
    factors = [schedule(done / 100) for done in range(101)]
    peak = int(np.argmax(factors))
    assert 5 <= peak <= 15
    assert (np.diff(factors[: peak + 1]) > 0).all()
    assert (np.diff(factors[peak:]) < 0).all()
    assert factors[0] > 0
    assert factors[-1] == pytest.approx(0, abs=1e-9)


def test_augmentation_depends_on_its_counters_and_not_on_the_batch():
    pixels, rows = drawn().pixels, np.arange(40)
    together = augment(pixels, rows, seed=1, epoch=2)
    alone = torch.cat([augment(pixels[[i]], rows[[i]], seed=1, epoch=2) for i in range(40)])
    assert torch.equal(together, alone)
    assert not torch.equal(together, augment(pixels, rows, seed=1, epoch=3))
    assert not torch.equal(together, augment(pixels, rows, seed=2, epoch=2))
    assert not torch.equal(augment(pixels[[0, 0]], rows[:2], seed=1, epoch=2)[0], together[1])


def test_augmentation_of_no_range_is_the_picture_or_its_mirror():
    pixels, rows = drawn().pixels, np.arange(40)
    changed = augment(pixels, rows, seed=1, epoch=0, ranges=Ranges(0, 0, 0, 0, 0, 0))
    plain = pixels.float() / 255
    straight = (changed - plain).abs().amax((1, 2, 3)) < 1e-4
    mirrored = (changed - plain.flip(3)).abs().amax((1, 2, 3)) < 1e-4
    assert (straight | mirrored).all()
    assert straight.any()
    assert mirrored.any()


@pytest.mark.parametrize("shape", [(8, 30), (30, 8), (16, 16)])
def test_muons_update_is_nearly_the_orthogonal_factor(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
    update = orthogonal(matrix)
    singular = torch.linalg.svdvals(update)
    assert 0.6 < singular.min() <= singular.max() < 1.3
    cosine = (update * (u @ vt)).sum() / (update.norm() * (u @ vt).norm())
    assert cosine > 0.97


def test_muon_takes_momentum_and_decay():
    weight = torch.nn.Parameter(torch.eye(4, dtype=torch.float64))
    optimizer = Muon([weight], lr=0.1, momentum=0.5, weight_decay=0.2)
    gradients = [torch.diag(torch.tensor([3.0, 1.0, 2.0, 4.0], dtype=torch.float64)) * s for s in (1, -1)]
    expected, momentum = weight.detach().clone(), torch.zeros(4, 4, dtype=torch.float64)
    for gradient in gradients:
        weight.grad = gradient
        optimizer.step()
        momentum = 0.5 * momentum + gradient
        expected = expected * (1 - 0.1 * 0.2) - 0.1 * orthogonal(gradient + 0.5 * momentum)
    assert torch.allclose(weight, expected, atol=1e-12)


def test_whitened_filters_see_patches_of_equal_strength():
    pixels = drawn(200).pixels.float() / 255
    encoder = Encoder(8)
    whiten(encoder, pixels)
    conv = encoder.stem[0]
    seen = F.conv2d(4 * pixels - 2, conv.weight, stride=3)
    assert torch.allclose(conv.weight[:12], -conv.weight[12:])
    covariance = torch.cov(seen[:, :12].transpose(0, 1).flatten(1)) * 16
    off_diagonal = covariance - torch.diag(covariance.diag())
    assert off_diagonal.abs().max() < 1e-2
    assert (covariance.diag() < 1.01).all()
    assert covariance.diag()[0] > 0.9


def test_a_picture_is_embedded_alike_in_any_batch():
    learner = Learner(drawn(), CONFIG, ALONE)
    vectors = learner.embed(range(40))
    assert torch.allclose(vectors.norm(dim=1), torch.ones(40), atol=1e-5)
    assert torch.allclose(torch.cat([learner.embed([row]) for row in range(40)]), vectors, atol=1e-5)


def test_onnx_gives_what_torch_gives(tmp_path):
    learner = Learner(drawn(), CONFIG, ALONE)
    export.write_onnx(learner.encoder, tmp_path / "encoder.onnx")
    encoder = served.Encoder(tmp_path / "encoder.onnx")
    seen = np.stack([pictures.load(file.as_py()) for file in learner.images.files])
    for batch in (seen[:1], seen[:7], seen):
        assert np.abs(encoder.encode(batch) - learner.embed(range(len(batch))).numpy()).max() < 1e-4


def test_an_export_that_differs_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(export, "TOLERANCE", 0.0)
    with pytest.raises(RuntimeError, match=r"encoder\.onnx differs"):
        export.write_onnx(Encoder(8), tmp_path / "encoder.onnx")


def test_same_category_is_the_share_of_the_ten_nearest():
    draws = np.random.default_rng(0)
    queries, items = draws.standard_normal((30, 5)), draws.standard_normal((80, 5))
    query_labels, item_labels = draws.integers(0, 4, 30), draws.integers(0, 4, 80)
    expected = np.mean(
        [
            np.mean(item_labels[np.argsort(((items - q) ** 2).sum(1))[:10]] == label)
            for q, label in zip(queries, query_labels, strict=True)
        ]
    )
    got = evaluate.same_category(torch.from_numpy(queries), torch.from_numpy(items), query_labels, item_labels)
    assert got == pytest.approx(expected)
    chance = np.mean(query_labels[:, None] == item_labels)
    assert evaluate.by_chance(query_labels, item_labels) == pytest.approx(chance)


def test_thumbnails_are_small_jpegs():
    small = export.thumbnail(softmax_kit.png(np.zeros((3, 40, 30), np.uint8)))
    assert small[:2] == b"\xff\xd8"
    assert export.thumbnail(small) == small
    wide = export.thumbnail(softmax_kit.png(np.zeros((3, 100, 700), np.uint8)))
    assert pictures.pixels(wide).shape == (3, SIDE, SIDE)
    assert len(export.thumbnail(wide)) == len(wide)


def test_the_job_publishes_embeddings_that_a_service_can_read(tmp_path, capsys):
    file, store = tmp_path / "images.parquet", ArtifactStore(tmp_path / "store")
    write_images(file, drawn(60))
    job.run(file, store, tmp_path / "work", CONFIG, ALONE)
    line = json.loads(capsys.readouterr().out.splitlines()[-1])
    artifact = store.fetch("embeddings", max_schema=1)
    assert line["artifacts"] == {"embeddings": artifact.manifest.version}
    loaded = Embeddings.load(artifact.path)
    table = loaded.thumbnails(["split", "category", "image"])
    assert table.num_rows == 60
    assert table["category"].to_pylist()[:3] == list(softmax_kit.SHAPES)
    encoder = served.Encoder(artifact.path / embeddings.ENCODER_FILE)
    seen = np.stack([pictures.load(file.as_py()) for file in drawn(60).files])
    assert np.abs(encoder.encode(seen) - loaded.vectors).max() < 1e-4
    metrics = artifact.manifest.metrics
    assert {
        "loss",
        "accuracy",
        "search_same_category_at_10",
        "same_category_by_chance",
        "same_category_by_pixels",
    } <= set(metrics)
    assert math.isfinite(metrics["loss"])
    assert not list((tmp_path / "work").glob("*/step-*"))  # done: the checkpoints are gone


def test_a_killed_job_takes_up_its_checkpoint(tmp_path, monkeypatch):
    file, store = tmp_path / "images.parquet", ArtifactStore(tmp_path / "store")
    write_images(file, drawn(60))
    with monkeypatch.context() as broken:
        broken.setattr(export, "write", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            job.run(file, store, tmp_path / "work", CONFIG, ALONE)
    assert store.names() == []
    with monkeypatch.context() as watched:
        watched.setattr(Learner, "step", lambda *_: pytest.fail("a step was taken again"))
        job.run(file, store, tmp_path / "work", CONFIG, ALONE)
    assert "loss" in store.manifest("embeddings").metrics


def test_pictures_without_test_and_validation_are_embedded_without_a_score(tmp_path):
    file, store = tmp_path / "images.parquet", ArtifactStore(tmp_path / "store")
    write_images(file, drawn(60))
    table = pq.read_table(file)
    pq.write_table(table.set_column(1, table.schema.field(1), pa.array(["train"] * 60)), file)
    job.run(file, store, None, CONFIG, ALONE)
    assert "search_same_category_at_10" not in store.manifest("embeddings").metrics


def edited(file: Path, column: str, change) -> None:
    """Replace a column of the images file by `change(its values)`; None drops it."""
    table = pq.read_table(file)
    place = table.column_names.index(column)
    if change is None:
        table = table.drop_columns([column])
    else:
        table = table.set_column(place, column, pa.array(change(table[column].to_pylist())))
    pq.write_table(table, file)


@pytest.mark.parametrize(
    ("message", "column", "change"),
    [
        ("column category is missing", "category", None),
        ("column image is string, not binary", "image", lambda v: ["x"] * len(v)),
        ("item_id: 1 is there twice", "item_id", lambda v: pa.array([1, 1, *v[2:]], pa.uint64())),
        ("item_id: 0 is not an id", "item_id", lambda v: pa.array([0, *v[1:]], pa.uint64())),
        ("split: 'tset' is not one of", "split", lambda v: ["tset", *v[1:]]),
        ("no row is of 'train'", "split", lambda v: ["test"] * len(v)),
        ("column category: row 0 is null", "category", lambda v: [None, *v[1:]]),
        ("item_id 3: image", "image", lambda v: [*v[:2], b"no picture", *v[3:]]),
    ],
)
def test_an_images_file_that_is_wrong_is_refused_by_column_or_row(tmp_path, message, column, change):
    file = tmp_path / "images.parquet"
    write_images(file, drawn(20))
    edited(file, column, change)
    with pytest.raises(DataError, match=message) as refused:
        reading.load(file, ALONE)
    assert str(file) in str(refused.value)


@pytest.mark.parametrize("content", [None, b"", b"PAR1 no parquet PAR1"])
def test_what_is_no_parquet_file_is_refused(tmp_path, content):
    file = tmp_path / "images.parquet"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(DataError, match=r"images\.parquet"):
        reading.load(file, ALONE)
