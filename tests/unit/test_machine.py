"""What there is of processors and memory: by affinity, and by the limits of every cgroup above."""

import os
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from phi3_batch import machine
from phi3_batch.machine import available_memory_bytes, children, memory_bytes, processors

V2 = "31 23 0:28 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw"
V1 = "31 23 0:28 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct"

MEMORY_V1 = "31 23 0:28 / /sys/fs/cgroup/memory rw shared:9 - cgroup cgroup rw,memory"
MEMINFO = "MemTotal:       24000 kB\nMemFree:          100 kB\nMemAvailable:    8000 kB"
KIB = 1024

Tree = Callable[[str, str, dict[str, str]], int]


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have a machine of eight processors with this cgroup, these mounts and these files."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    monkeypatch.setattr(machine, "_ROOT", tmp_path)

    def make(cgroup: str, mounts: str, files: dict[str, str]) -> None:
        for name, text in {
            "proc/meminfo": MEMINFO,
            "proc/self/statm": "1000 900 100 1 0 500 0",
            "proc/self/cgroup": cgroup,
            "proc/self/mountinfo": f"23 1 8:1 / / rw - ext4 /dev/vda rw\n{mounts}\n",
            **{f"sys/fs/cgroup/{name}": text for name, text in files.items()},
        }.items():
            file = tmp_path / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text + "\n")

    return make


@pytest.fixture
def count(make: Callable[..., None]) -> Tree:
    """The processors of such a machine."""

    def count(cgroup: str, mounts: str, files: dict[str, str]) -> int:
        make(cgroup, mounts, files)
        return processors()

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
    monkeypatch.setattr(machine, "_ROOT", tmp_path)
    assert processors() == 3


@pytest.fixture
def memory(make: Callable[..., None]) -> Callable[..., tuple[int, int]]:
    """In KiB, the memory of such a machine, and what is available of it."""

    def memory(cgroup: str, mounts: str, files: dict[str, int | str]) -> tuple[int, int]:
        written = {
            name: str(each * KIB if isinstance(each, int) else each) for name, each in files.items()
        }
        make(cgroup, mounts, written)
        return memory_bytes() // KIB, available_memory_bytes() // KIB

    return memory


def test_the_memory_of_a_machine_without_limits(memory: Callable[..., tuple[int, int]]) -> None:
    assert memory("0::/", V2, {}) == (24000, 8000)
    assert memory("0::/", V2, {"memory.max": "max", "memory.current": 60}) == (24000, 8000)


def test_the_memory_of_a_container(memory: Callable[..., tuple[int, int]]) -> None:
    limited: dict[str, int | str] = {"memory.max": 1000, "memory.current": 600}
    assert memory("0::/", V2, limited) == (1000, 400)
    # files that it has read make room when asked
    limited["memory.stat"] = f"anon {500 * KIB}\ninactive_file {70 * KIB}"
    assert memory("0::/", V2, limited) == (1000, 470)
    limited["memory.current"] = 1200
    assert memory("0::/", V2, limited) == (1000, 0)


def test_the_tightest_memory_on_the_way_up_holds(memory: Callable[..., tuple[int, int]]) -> None:
    files = {"a/memory.max": 900, "a/memory.current": 800, "a/b/memory.max": 700}
    assert memory("0::/a/b", V2, {**files, "a/b/memory.current": 10}) == (700, 100)


def test_memory_of_version_1(memory: Callable[..., tuple[int, int]]) -> None:
    files = {
        "memory/pod/memory.limit_in_bytes": 1000,
        "memory/pod/memory.usage_in_bytes": 990,
        "memory/pod/memory.stat": f"total_inactive_file {50 * KIB}",
        "memory/memory.limit_in_bytes": str(2**63 - 4096),  # none
        "memory/memory.usage_in_bytes": 5000,
    }
    assert memory("5:memory:/pod\n4:cpu:/elsewhere", MEMORY_V1, files) == (1000, 60)


def test_what_spark_gives_a_python_worker_is_what_is_available(
    memory: Callable[..., tuple[int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    taken = 1000 * os.sysconf("SC_PAGE_SIZE")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (taken + 50 * KIB, -1))
    assert memory("0::/", V2, {}) == (24000, 50)
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1000, -1))
    assert memory("0::/", V2, {}) == (24000, 0)


def test_the_real_machine_has_memory() -> None:
    assert 10**8 < available_memory_bytes() < memory_bytes()


def test_a_child_is_seen_until_it_ends() -> None:
    before = children()
    with subprocess.Popen(["sleep", "60"]) as child:
        assert children() - before == {child.pid}
        child.kill()
    assert children() == before


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
