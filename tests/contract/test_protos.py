"""The committed stubs are those of the committed protos, and the protos keep the last release's wire format."""

import subprocess
import sys
from pathlib import Path

import pytest

from tools.protos import generate

ROOT = Path(__file__).resolve().parents[2]


def buf(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [Path(sys.executable).parent / "buf", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


def stubs(root):
    files = (root / "vitrine/api").rglob("*.py*")
    return {p.relative_to(root): p.read_text() for p in files if p.suffix in (".py", ".pyi")}


def test_committed_stubs_are_current(tmp_path):
    generate(tmp_path)
    fresh = stubs(tmp_path)
    assert len(fresh) > 10
    committed = stubs(ROOT)
    assert committed == fresh, "run `make protos`"


def test_protos_read_what_the_last_release_wrote():
    checked = buf("breaking", "--against", "protos/last-release.binpb")
    assert checked.returncode == 0, checked.stdout


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (("uint32 k = 5;", "uint32 k = 50;"), "5"),
        (("repeated uint64 item_ids = 3;", "repeated uint32 item_ids = 3;"), "type"),
    ],
)
def test_a_breaking_change_is_found(tmp_path, change, complaint):
    for source in (ROOT / "protos").rglob("*.proto"):
        target = tmp_path / source.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(source.read_text().replace(*change))
    (tmp_path / "buf.yaml").write_text((ROOT / "buf.yaml").read_text())
    checked = buf("breaking", str(tmp_path), "--against", "protos/last-release.binpb")
    assert checked.returncode != 0
    assert complaint in checked.stdout
