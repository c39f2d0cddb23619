"""Runs tests/check.c under the sanitizers of clang, as ``make sanitize`` does."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from build import compile_to

CHECK = "tests/check.c"
# what the compiler makes is looked at, not how fast it is
DEBUG = ("-std=c11", "-O1", "-g", "-fno-omit-frame-pointer", "-fno-math-errno", "-ffp-contract=off")
SANITIZERS = {
    "no sanitizer": (),
    "undefined behaviour": ("-fsanitize=undefined", "-fno-sanitize-trap=undefined"),
    "threads": ("-fsanitize=thread",),
    "addresses": ("-fsanitize=address",),
}


def main() -> int:
    """Returns how many of them have found something."""
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for name, options in SANITIZERS.items():
            runtime = [] if name != "addresses" else _address_runtime()
            if runtime is None:
                print(f"{name}: not looked at, for there is no gcc whose library ziglang lacks")
                continue
            program = Path(folder, "check")
            compile_to(program, [CHECK, *runtime], (*DEBUG, *options))
            environment = os.environ | {"TSAN_OPTIONS": "halt_on_error=1"}
            done = subprocess.run([program], env=environment)
            print(f"{name}: {'a fault' if done.returncode else 'clean'}", flush=True)
            failed += done.returncode != 0
    return failed


def _address_runtime() -> list[str] | None:
    """The library of the sanitizer of addresses: ziglang has none, gcc's fits clang's code."""
    gcc = shutil.which("gcc")
    if gcc is None:
        return None
    found = subprocess.run(
        [gcc, "-print-file-name=libasan.so"], capture_output=True, text=True, check=True
    )
    path = Path(found.stdout.strip())
    return [str(path.resolve())] if path.is_absolute() else None


if __name__ == "__main__":
    sys.exit(main())
