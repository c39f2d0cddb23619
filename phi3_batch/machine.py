"""What the machine gives this process: the one reader of /proc, /sys and affinity.

Limits are those of the process's cgroup and of each one above it, of version 2 or 1. How a tree of
cgroups is found is told by https://docs.kernel.org/admin-guide/cgroup-v2.html and the manual pages
cgroups(7) and proc_pid_mountinfo(5).
"""

import math
import os
import re
import resource
import threading
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

_ROOT = Path("/")  # of the file system that has /proc and /sys
# a line of mountinfo: what of the file system is mounted, where, and what it is
_CGROUP_MOUNT = re.compile(
    r"^\S+ \S+ \S+ (?P<root>\S+) (?P<at>\S+) .*- (?P<kind>cgroup2?) \S+ (?P<options>\S+)$",
    re.MULTILINE,
)
# limit and use in bytes, and what of memory.stat makes room when it is asked to
_MEMORY_FILES = (
    ("memory.max", "memory.current", "inactive_file"),  # version 2
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),  # version 1
)


def processors() -> int:
    """How many processors this process may use at a time.

    Those of its affinity mask (``taskset``, cpusets), and no more than the CPU limits of its
    cgroups (``docker run --cpus``, ``resources.limits.cpu`` of a pod). A limit of a part of a
    processor counts as a whole one, as the JVM has it: 1.5 is 2, 0.5 is 1.
    """
    return min([len(os.sched_getaffinity(0)), *map(math.ceil, _cpu_limits())])


def processor_flags() -> frozenset[str]:
    """What the processor has, by the names of /proc/cpuinfo; none where it names them otherwise."""
    flags = re.search(r"^flags\s*:(.*)$", _read(_ROOT / "proc/cpuinfo"), re.MULTILINE)
    return frozenset(flags[1].split() if flags else ())


def memory_bytes() -> int:
    """The memory that this process may ever have: the machine's, or less where there is a limit."""
    return min([_meminfo("MemTotal"), *(limit for limit, _ in _memory_limits())])


def available_memory_bytes() -> int:
    """The memory that this process may still take: what its limits leave of what is free."""
    rooms = [_meminfo("MemAvailable"), *(limit - used for limit, used in _memory_limits())]
    # Spark sets it in Python workers, for spark.executor.pyspark.memory
    address_space, _ = resource.getrlimit(resource.RLIMIT_AS)
    if address_space != resource.RLIM_INFINITY:
        pages = int(_read(_ROOT / "proc/self/statm").split()[0])
        rooms.append(address_space - pages * os.sysconf("SC_PAGE_SIZE"))
    return max(0, min(rooms))


def process_memory(pid: int) -> int:
    """Bytes that a process has in memory.

    Raises:
        OSError: there is no such process.
    """
    pages = (_ROOT / f"proc/{pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def process_start(pid: int) -> int:
    """When a process began, in ticks since the machine did: ids of processes come again.

    Raises:
        OSError: there is no such process.
    """
    # after the name, which may have spaces and brackets in it; the 22nd field of all
    fields = (_ROOT / f"proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[19])


def children() -> set[int]:
    """Ids of the processes that this thread has started and that have not ended."""
    return set(
        map(int, _read(_ROOT / f"proc/self/task/{threading.get_native_id()}/children").split())
    )


def _cpu_limits() -> Iterator[float]:
    """In processors."""
    for cgroup in _cgroups("cpu"):
        words = _read(cgroup / "cpu.max").split()  # version 2: quota and period in one file
        if not words:
            quota, period = (_read(cgroup / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
            words = [quota.strip(), period.strip()]
        try:
            quota_us, period_us = map(int, words)
        except ValueError:  # "max", or no such file
            continue
        if quota_us > 0 and period_us > 0:  # -1 is no limit in version 1
            yield quota_us / period_us


def _memory_limits() -> Iterator[tuple[int, int]]:
    """Limit and use in bytes; files that were read and may be dropped are not counted as used."""
    for cgroup in _cgroups("memory"):
        for limit, use, droppable in _MEMORY_FILES:
            try:
                allowed, used = int(_read(cgroup / limit)), int(_read(cgroup / use))
            except ValueError:  # "max", or no such file
                continue
            statistics = dict(line.split() for line in _read(cgroup / "memory.stat").splitlines())
            yield allowed, used - int(statistics.get(droppable, 0))


def _meminfo(name: str) -> int:
    """In bytes."""
    kib = re.search(rf"^{name}:\s*(\d+) kB$", _read(_ROOT / "proc/meminfo"), re.MULTILINE)
    assert kib, "Linux says it since 3.14"
    return int(kib[1]) * 1024


def _cgroups(controller: str) -> Iterator[Path]:
    """Folders of the cgroups that may limit this process: its own, and those above it.

    A container sees its own part of the tree.
    """
    paths = {}
    for line in _read(_ROOT / "proc/self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" or controller in controllers.split(","):
            paths["cgroup2" if number == "0" else "cgroup"] = PurePosixPath(path)
    for mount in _CGROUP_MOUNT.finditer(_read(_ROOT / "proc/self/mountinfo")):
        kind = mount["kind"]
        is_in_charge = kind == "cgroup2" or controller in mount["options"].split(",")
        if not is_in_charge or kind not in paths:
            continue
        mounted, at = _unescape(mount["root"]), _unescape(mount["at"])
        top = _ROOT / at.lstrip("/")
        try:
            inside = paths[kind].relative_to(mounted)
        except ValueError:  # it is not in what is mounted here, of which the top is the nearest
            inside = PurePosixPath()
        own = top if ".." in inside.parts else top / inside
        yield from (folder for folder in (own, *own.parents) if folder.is_relative_to(top))


def _unescape(field: str) -> str:
    """A path of mountinfo, which writes a blank and the like in octal digits."""
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), field)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
