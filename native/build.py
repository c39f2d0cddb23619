"""Compiles the native engine's library: hatchling's hook, and what ``make sanitize`` calls.

The compiler is clang, of the package ziglang, so that nothing but pip is needed. What it makes runs
on every Linux since glibc 2.17, and with every version of Python.
"""

import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

SOURCES = Path(__file__).parent
LIBRARY = SOURCES.parent / "phi3_batch" / "engines" / "native" / "libphi3.so"
TARGET = "x86_64-linux-gnu.2.17"
WHEEL_TAG = "py3-none-manylinux_2_17_x86_64"

# A sum has one order, and each product is rounded as it is written: results are the same bits.
FLAGS = ("-std=c11", "-O3", "-fPIC", "-fno-math-errno", "-ffp-contract=off")
WARNINGS = ("-Wall", "-Wextra", "-Werror")
LINKED = ("-lm", "-lpthread")
BASELINE = "-mcpu=x86_64"
# step.c is compiled for each instruction set, and all else once, for every processor
STEPS = {
    "vnni": ("-mcpu=x86_64_v4+avx512vnni", "-DPHI3_VNNI"),
    "avx2": ("-mcpu=x86_64_v3", "-DPHI3_AVX2"),
    "portable": (BASELINE, "-Os"),
}


class CompileLibrary(BuildHookInterface[Any]):
    """The hook: compiles the library where it is not there, or older than what it is made of."""

    def dependencies(self) -> list[str]:
        """The compiler, where it is needed: it is large."""
        pins = (SOURCES.parent / "constraints.txt").read_text(encoding="utf-8").split()
        return [pin for pin in pins if pin.startswith("ziglang==")] if _is_stale() else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Compile, and say which machines the wheel is for."""
        if not _is_supported():
            return
        if _is_stale():
            LIBRARY.unlink(missing_ok=True)  # a process that has loaded it keeps it as it was
            compile_to(LIBRARY, ["-shared", "-s", "-Wl,-z,defs"])
        build_data["pure_python"] = False
        build_data["tag"] = WHEEL_TAG


def compile_to(target: Path, link: Iterable[str], options: Sequence[str] = FLAGS) -> None:
    """Compile the sources, and link what comes of them.

    Args:
        target: the file to make.
        link: options and further files for the linker.
        options: for the compiler.

    Raises:
        subprocess.CalledProcessError: the compiler has found a fault, and has said so.
    """
    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor() as threads:
        objects = {
            Path(folder, f"step-{name}.o"): ("step.c", *flags, f"-DINSTRUCTIONS={name}")
            for name, flags in STEPS.items()
        }
        for source in sorted(SOURCES.glob("*.c")):
            if source.name != "step.c":
                objects[Path(folder, f"{source.stem}.o")] = (source.name, BASELINE)
        compiled = threads.map(
            lambda made: _run([*options, *WARNINGS, "-c", *objects[made], "-o", str(made)]), objects
        )
        list(compiled)
        _run([*options, *link, *map(str, objects), "-o", str(target), *LINKED])


def _run(arguments: Sequence[str]) -> None:
    compiler = [sys.executable, "-m", "ziglang", "cc", "-target", TARGET]
    subprocess.run([*compiler, *arguments], cwd=SOURCES, check=True)


def _is_supported() -> bool:
    """Whether it was tried on such a machine."""
    return sys.platform == "linux" and platform.machine() == "x86_64"


def _is_stale() -> bool:
    if not _is_supported():
        return False
    made_of = [Path(__file__), *SOURCES.glob("*.[ch]")]
    return not LIBRARY.exists() or any(
        file.stat().st_mtime > LIBRARY.stat().st_mtime for file in made_of
    )
