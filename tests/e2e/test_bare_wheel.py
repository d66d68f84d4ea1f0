"""The wheel, installed alone in an empty environment, is a light client: it calls a server by TLS and token."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

from tests.security_kit import Authority
from tests.small_ctr_server import SERVICE, running
from vitrine.cli.callers import new_entry

ROOT = Path(__file__).parents[2]
CALL_IT = """
import json, sys
import numpy as np
from vitrine.client import CtrClient, InvalidArgumentError, Security, UserContext

user = UserContext(np.array([2**63 + 1], np.uint64), np.array([1.0], np.float32))
security = Security(ca=sys.argv[2], token_file=sys.argv[3])
with CtrClient(sys.argv[1], timeout_s=20, wait_for_ready=True, security=security) as ctr:
    scores = ctr.score(user, np.array([2, 4], np.uint64))
    try:
        ctr.score(user, [4, 0])
    except InvalidArgumentError as error:
        fields = error.fields
import vitrine
print(json.dumps([scores.version, scores.pctrs.tolist(), fields, vitrine.__file__]))
"""


def run(*command: str, **options) -> str:
    ended = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert ended.returncode == 0, f"{' '.join(command)}\n{ended.stdout}\n{ended.stderr}"
    return ended.stdout


def test_the_bare_wheel_calls_a_running_server(tmp_path):
    # In the checkout's build folder, where the extension is compiled already.
    run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(ROOT))
    (wheel,) = (tmp_path / "dist").glob("vitrine_serving-*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    folders = {name.split("/")[0].split("-")[0] for name in names}
    assert folders == {"vitrine", "vitrine_serving"}, "the library and its metadata; no services, no trainers"
    assert "vitrine/py.typed" in names
    assert any(name.startswith("vitrine/native/_native.") and name.endswith(".so") for name in names)
    run(sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "bare"))
    bare = str(tmp_path / "bare" / "bin" / "python")
    pip = (sys.executable, "-m", "pip", "--python", bare, "--disable-pip-version-check")
    run(*pip, "install", "--quiet", "-c", str(ROOT / "constraints.txt"), str(wheel))

    installed = {package["name"].lower() for package in json.loads(run(*pip, "list", "--format", "json"))}
    assert installed == {"vitrine-serving", "grpcio", "protobuf", "numpy", "typing_extensions"}

    empty = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    authority = Authority(tmp_path / "authority")
    own, (token, entry) = authority.server(), new_entry("front", [f"{SERVICE}/*"])
    (tmp_path / "token").write_text(token)
    (tmp_path / "callers.toml").write_text(entry)
    flags = ("--tls-cert", own.cert, "--tls-key", own.key, "--callers", tmp_path / "callers.toml")
    with running(tmp_path, *map(str, flags)) as server:
        argv = (server.address, str(authority.cert), str(tmp_path / "token"))
        said = run(bare, "-I", "-c", CALL_IT, *argv, cwd=tmp_path, env=empty)
    version, pctrs, fields, module = json.loads(said)
    assert (version, pctrs) == ("small-1", [0.5, 0.25])
    assert fields == {"ad_ids[1]": "0 is reserved; ids are 1 or more"}
    assert module.startswith(str(tmp_path)), "the wheel's own, not the checkout's"
