"""Which kernel runs where: the best that the processor has, or the one that VITRINE_KERNEL names."""

import os
import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from vitrine import native

NATIVE = Path(__file__).parents[2] / "native"
X86 = platform.machine().lower() in ("x86_64", "amd64")
AVX512 = {"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vpopcntdq"}
FLAGS = {  # as CMakeLists.txt gives them to each translation unit
    "portable": ["-mno-sse3", "-mno-popcnt"] if X86 else [],
    "avx2": ["-mavx2"],
    "avx512": ["-mavx2", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx512vpopcntdq"],
}

needs_compiler = pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")


def chosen(**variables):
    """What a fresh process says: (exit code, its last line)."""
    env = {name: value for name, value in os.environ.items() if name != "VITRINE_KERNEL"} | variables
    program = "from vitrine import native; print(native.kernel())"
    done = subprocess.run([sys.executable, "-c", program], env=env, capture_output=True, text=True)
    return done.returncode, (done.stdout + done.stderr).strip().splitlines()[-1]


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="no /proc/cpuinfo")
def test_the_best_kernel_of_the_processor_is_chosen():
    flags = (
        set(re.findall(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.M)[0].split()) if X86 else set()
    )
    expected = ["avx512"] * (flags >= AVX512 | {"avx2"}) + ["avx2"] * ("avx2" in flags) + ["portable"]
    assert native.supported_kernels() == expected
    assert chosen() == (0, expected[0])


@pytest.mark.parametrize("kernel", native.supported_kernels())
def test_a_variable_forces_any_supported_kernel(kernel):
    assert chosen(VITRINE_KERNEL=kernel) == (0, kernel)


def test_a_kernel_that_this_machine_lacks_is_refused_with_the_names_it_has():
    code, message = chosen(VITRINE_KERNEL="neon")
    assert code == 1
    assert message.startswith("ValueError: VITRINE_KERNEL: this machine has no kernel 'neon'; it runs ")
    assert "portable" in message


def compile_unit(kernel, out, *more):
    command = ["c++", "-std=c++20", "-O1", "-fPIC", "-ffp-contract=off", "-Wno-psabi", *FLAGS[kernel], *more]
    return subprocess.run([*command, str(NATIVE / "isa" / f"{kernel}.cpp"), "-o", str(out)], check=True)


@needs_compiler
@pytest.mark.parametrize("kernel", [*FLAGS] if X86 else ["portable"])
def test_a_translation_unit_shares_no_symbol_but_its_table(kernel, tmp_path):
    """A shared inline function would let the linker give one set's code to all (the one-definition rule)."""
    compile_unit(kernel, tmp_path / "unit.o", "-c", *(["-DVITRINE_X86"] if X86 else []))
    nm = ["nm", "--defined-only", "--extern-only", str(tmp_path / "unit.o")]
    listing = subprocess.run(nm, check=True, capture_output=True, text=True).stdout
    symbols = [line.split()[-1] for line in listing.splitlines()]
    assert len(symbols) == 1
    assert f"{kernel}_kernels" in symbols[0]


@needs_compiler
def test_the_portable_unit_includes_no_header_of_a_processor(tmp_path):
    compile_unit("portable", tmp_path / "headers.d", "-M")
    assert "tower.hpp" in (tmp_path / "headers.d").read_text()
    assert "intrin.h" not in (tmp_path / "headers.d").read_text()
