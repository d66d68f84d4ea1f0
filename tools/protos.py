"""Write the gRPC stubs of `protos/` into a folder (default: the repository root, so `vitrine/api`)."""

import sys
from pathlib import Path

import grpc_tools
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"


def generate(out: Path) -> None:
    """Generate messages, gRPC stubs and their types under `out`/vitrine/api.

    Raises RuntimeError where protoc refuses a file; it has printed why.
    """
    google = Path(grpc_tools.__file__).parent / "_proto"
    sources = sorted(str(p.relative_to(PROTOS)) for p in PROTOS.rglob("*.proto"))
    args = ["protoc", f"-I{PROTOS}", f"-I{google}"]
    # mypy-protobuf's plugins lie beside this Python, whose folder need not be on PATH.
    args += [f"--plugin={p}={Path(sys.executable).parent / p}" for p in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")]
    args += [f"--{plugin}_out={out}" for plugin in ("python", "grpc_python", "mypy", "mypy_grpc")]
    if protoc.main(args + sources) != 0:
        raise RuntimeError("protoc failed")
    for folder in [out / "vitrine/api", *(p for p in (out / "vitrine/api").rglob("*") if p.is_dir())]:
        if folder.name != "__pycache__":
            (folder / "__init__.py").touch()


if __name__ == "__main__":
    generate(Path(sys.argv[1]) if len(sys.argv) > 1 else ROOT)
