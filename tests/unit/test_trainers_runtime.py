"""What trainers share: progress for people, programs and logs; checkpoints that are whole or not there."""

import json

import pytest
import torch

from trainers.runtime import dist, progress
from trainers.runtime.checkpoint import Checkpoints


@pytest.fixture
def clock(monkeypatch):
    """A clock that tests move by hand."""
    now = [100.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    return now


def _lines(text: str) -> list[dict]:
    return [json.loads(line) for line in text.splitlines()]


def test_json_progress_is_thinned_out_but_begins_and_ends(monkeypatch, capsys, clock):
    monkeypatch.setenv("VITRINE_PROGRESS", "json")
    with progress.Progress("job", total=100) as shown:
        for step in range(1, 101):
            clock[0] += 0.0625
            shown.update(step, loss=1 / step)
    lines = _lines(capsys.readouterr().out)
    assert [line["step"] for line in lines] == [*range(1, 101, 4), 100]
    assert lines[-1] == {"job": "job", "step": 100, "total": 100, "metrics": {"loss": 0.01}}


def test_an_update_held_back_is_shown_at_the_end(monkeypatch, capsys, clock):
    monkeypatch.setenv("VITRINE_PROGRESS", "json")
    with progress.Progress("job") as shown:
        shown.update(1, loss=2.0)
        shown.update(2, auc=0.5)
    assert _lines(capsys.readouterr().out)[-1]["metrics"] == {"loss": 2.0, "auc": 0.5}


def test_without_a_terminal_progress_is_a_plain_line_every_two_seconds(capsys, clock):
    with progress.Progress("job", total=9) as shown:
        for step in range(1, 9):
            clock[0] += 0.5
            shown.update(step, loss=0.25)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines() == ["job 1/9 loss 0.25", "job 5/9 loss 0.25", "job 8/9 loss 0.25"]


def test_only_rank_0_speaks(monkeypatch, capsys):
    monkeypatch.setenv("RANK", "1")
    with progress.Progress("job", total=1) as shown:
        shown.update(1)
    progress.result("job", {}, {})
    assert capsys.readouterr() == ("", "")


def test_the_result_is_one_line_of_json(capsys):
    progress.result("job", {"towers": "v1"}, {"auc": 0.5})
    said = json.loads(capsys.readouterr().out)
    assert said == {"job": "job", "artifacts": {"towers": "v1"}, "metrics": {"auc": 0.5}}


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path / "work", dist.init("cpu"))


def test_a_checkpoint_comes_back_whole_or_by_name(checkpoints):
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor([7], dtype=torch.float64)}
    assert checkpoints.latest() is None
    checkpoints.save(5, tensors, {"loss": 0.5})
    saved = checkpoints.latest()
    assert (saved.step, saved.note) == (5, {"loss": 0.5})
    whole = checkpoints.load(saved)
    assert whole.keys() == tensors.keys()
    assert all(torch.equal(whole[name], tensors[name]) for name in tensors)
    assert checkpoints.load(saved, ["b"]).keys() == {"b"}
    with pytest.raises(KeyError):
        checkpoints.load(saved, ["c"])


def test_the_last_two_checkpoints_are_kept_and_none_after_the_end(checkpoints):
    for step in (1, 2, 10):
        checkpoints.save(step, {"a": torch.tensor([float(step)])}, {})
    assert sorted(path.name for path in checkpoints.folder.iterdir()) == ["step-000000000002", "step-000000000010"]
    assert checkpoints.load(checkpoints.latest())["a"].item() == 10
    checkpoints.clear()
    assert checkpoints.latest() is None


def test_a_save_cut_short_is_no_checkpoint_and_is_cleared_by_the_next(checkpoints):
    checkpoints.save(1, {"a": torch.zeros(1)}, {})
    cut = checkpoints.folder / ".step-000000000002.part"
    cut.mkdir()
    (cut / "note.json").write_text("{}")
    assert checkpoints.latest().step == 1
    checkpoints.save(3, {"a": torch.zeros(1)}, {})
    assert not cut.exists()


def test_one_process_needs_no_group_and_an_unknown_device_is_refused():
    group = dist.init("cpu")
    assert (group.rank, group.world, dist.rank(), dist.world()) == (0, 1, 0, 1)
    assert group.all_reduce(torch.ones(3)).tolist() == [1, 1, 1]
    assert group.broadcast("x") == "x"
    assert group.bytes_sent == 0
    with pytest.raises(ValueError, match="device"):
        dist.init("tpu")
