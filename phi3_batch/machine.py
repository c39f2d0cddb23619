"""What the machine gives this process: the one place that reads CPU limits and affinity."""

import math
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

# a line of mountinfo: what of the file system is mounted, where, and what it is
_CGROUP_MOUNT = re.compile(
    r"^\S+ \S+ \S+ (?P<root>\S+) (?P<at>\S+) .*- (?P<kind>cgroup2?) \S+ (?P<options>\S+)$",
    re.MULTILINE,
)


def processors(root: Path = Path("/")) -> int:
    """How many processors this process may use at a time.

    Those of its affinity mask (``taskset``, cpusets), and no more than the CPU limits of its
    cgroup and of each one above it (``docker run --cpus``, ``resources.limits.cpu`` of a pod). A
    limit of a part of a processor counts as a whole one, as the JVM has it: 1.5 is 2, 0.5 is 1.

    Args:
        root: of the file system that has /proc and /sys.
    """
    return min([len(os.sched_getaffinity(0)), *map(math.ceil, _cpu_limits(root))])


def _cpu_limits(root: Path) -> Iterator[float]:
    """The limits, in processors, of the cgroup of this process and of those above it."""
    for folder, top in _cpu_cgroups(root):
        for cgroup in (folder, *folder.parents):
            limit = _cpu_limit(cgroup)
            if limit is not None:
                yield limit
            if cgroup == top:
                break


def _cpu_limit(cgroup: Path) -> float | None:
    """A cgroup's own limit, whichever version it is of; None where it has none."""
    words = _read(cgroup / "cpu.max").split()  # version 2: quota and period in one file
    if not words:
        quota, period = (_read(cgroup / f"cpu.cfs_{name}_us") for name in ("quota", "period"))
        words = [quota.strip(), period.strip()]
    try:
        quota_us, period_us = map(int, words)
    except ValueError:  # "max", or no such file
        return None
    # -1 is no limit in version 1
    return quota_us / period_us if quota_us > 0 and period_us > 0 else None


def _cpu_cgroups(root: Path) -> Iterator[tuple[Path, Path]]:
    """Folders of the cgroups that this process is in and that may limit processors.

    Each with the topmost folder that can be seen: a container sees its own part of the tree.
    https://docs.kernel.org/admin-guide/cgroup-v2.html and the manual pages cgroups(7) and
    proc_pid_mountinfo(5) describe the two files.
    """
    paths = {}
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" or "cpu" in controllers.split(","):
            paths["cgroup2" if number == "0" else "cgroup"] = PurePosixPath(path)
    for mount in _CGROUP_MOUNT.finditer(_read(root / "proc/self/mountinfo")):
        kind = mount["kind"]
        is_of_cpu = kind == "cgroup2" or "cpu" in mount["options"].split(",")
        if not is_of_cpu or kind not in paths:
            continue
        mounted, at = _unescape(mount["root"]), _unescape(mount["at"])
        top = root / at.lstrip("/")
        try:
            inside = paths[kind].relative_to(mounted)
        except ValueError:  # it is not in what is mounted here, of which the top is the nearest
            inside = PurePosixPath()
        yield (top if ".." in inside.parts else top / inside), top


def _unescape(field: str) -> str:
    """A path of mountinfo, which writes a blank and the like in octal digits."""
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), field)


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
