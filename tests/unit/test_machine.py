"""How many processors there are: by affinity, and by the limits of every cgroup above."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from phi3_batch.machine import processors

V2 = "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw"
V1 = "31 23 0:28 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct"

Tree = Callable[[str, str, dict[str, str]], int]


@pytest.fixture
def count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tree:
    """The processors, of eight, in a tree with this cgroup, these mounts and these files."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))

    def count(cgroup: str, mounts: str, files: dict[str, str]) -> int:
        for name, text in {
            "proc/self/cgroup": cgroup,
            "proc/self/mountinfo": f"23 1 8:1 / / rw - ext4 /dev/vda rw\n{mounts}\n",
            **{f"sys/fs/cgroup/{name}": text for name, text in files.items()},
        }.items():
            file = tmp_path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text + "\n")
        return processors(tmp_path)

    return count


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ("max 100000", 8),
        ("200000 100000", 2),
        ("150000 100000", 2),  # a part of a processor counts as one, as in the JVM
        ("10000 100000", 1),
        ("25000 50000", 1),
        ("6400000 100000", 8),
        ("max", 8),
        ("", 8),
        ("100000 0", 8),
    ],
)
def test_the_limit_of_a_container(count: Tree, limit: str, expected: int) -> None:
    assert count("0::/", V2, {"cpu.max": limit}) == expected


def test_the_tightest_limit_on_the_way_up_holds(count: Tree) -> None:
    inner, outer = "a.slice/b.scope/cpu.max", "a.slice/cpu.max"
    assert count("0::/a.slice/b.scope", V2, {inner: "400000 100000", outer: "max 100000"}) == 4
    assert count("0::/a.slice/b.scope", V2, {outer: "300000 100000"}) == 3
    assert count("0::/a.slice/b.scope", V2, {inner: "max 100000"}) == 3
    assert count("0::/", V2, {}) == 8, "another's limit"


def test_a_cgroup_that_cannot_be_seen_has_the_limits_of_what_can(count: Tree) -> None:
    below = "31 23 0:28 /docker/c1 /sys/fs/cgroup rw - cgroup2 cgroup2 rw"
    assert count("0::/docker/c1/job", below, {"job/cpu.max": "200000 100000"}) == 2
    assert count("0::/elsewhere", below, {"cpu.max": "300000 100000"}) == 3
    assert count("0::/../c2", V2, {}) == 3


def test_version_1(count: Tree) -> None:
    def files(folder: str, quota: int) -> dict[str, str]:
        names = {"quota": quota, "period": 100_000}
        return {f"{folder}/cpu.cfs_{name}_us": str(value) for name, value in names.items()}

    cgroup = "5:memory:/elsewhere\n4:cpuacct,cpu:/pods/p1\n1:name=systemd:/\n0::/"
    assert count(cgroup, V1, files("cpu,cpuacct/pods/p1", -1)) == 8
    assert count(cgroup, V1, files("cpu,cpuacct/pods", 250_000)) == 3
    assert count(cgroup, V1, files("cpu,cpuacct/pods/p1", 50_000)) == 1


def test_a_mount_with_a_blank_and_both_versions_at_once(count: Tree) -> None:
    second = r"32 23 0:29 / /sys/fs/cgroup/two\040words rw - cgroup2 none rw"
    cgroup = "4:cpu,cpuacct:/\n0::/"
    found = count(cgroup, f"{V1}\n{second}", {"two words/cpu.max": "500000 100000"})
    assert found == 5


def test_without_proc_or_cgroups_affinity_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 3, 5} if not process else {})
    assert processors(tmp_path) == 3


def test_a_real_process_that_is_held_to_one_processor() -> None:
    code = """
import os
os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
from phi3_batch.engines.threads import thread_count
from phi3_batch.machine import processors
print(processors(), thread_count())
"""
    environment = {name: os.environ[name] for name in ("PATH", "PYTHONPATH") if name in os.environ}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment
    )
    assert done.stdout == "1 1\n"
