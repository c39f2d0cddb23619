"""Processes of one machine do not count on the same memory."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from phi3_batch import memory_claims
from phi3_batch.machine import process_memory, process_start
from phi3_batch.memory_claims import claim_memory

FREE = 8 * 10**9
# half of what is free, as a KV cache takes it; and then it waits to be told to end
CODE = """
import sys
from phi3_batch import memory_claims
memory_claims.available_memory_bytes = lambda: int(sys.argv[1])
print(memory_claims.claim_memory(lambda free: free // 2), flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(memory_claims, "available_memory_bytes", lambda: FREE)
    return tmp_path / "phi3_batch" / "memory"


def started() -> subprocess.Popen[str]:
    command = [sys.executable, "-c", CODE, str(FREE)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def claimed(process: subprocess.Popen[str]) -> int:
    assert process.stdout is not None
    return int(process.stdout.readline())


def test_claims_of_processes_that_begin_at_once_add_up(folder: Path) -> None:
    processes = [started() for _ in range(4)]
    claims = [claimed(process) for process in processes]
    # a half of what the others leave; what they have in memory already is not counted twice
    assert sum(claims) <= FREE
    assert max(claims) == FREE // 2
    assert min(claims) > FREE // 32
    mine = claim_memory(lambda free: free)
    assert FREE - sum(claims) <= mine <= FREE - sum(claims) + 4 * 200 * 10**6
    # claims end with their processes, and nothing has to be put away for that
    for process in processes[:2]:
        process.kill()
        process.wait()
    for process in processes[2:]:
        process.communicate("")
    assert claim_memory(lambda free: free) == FREE
    assert [file.name for file in folder.glob("*.json")] == [f"{os.getpid()}.json"]


def test_what_a_process_has_is_not_free_twice() -> None:
    mine = os.getpid()
    there = process_memory(mine)
    assert 10**7 < there < 10**10
    claim_memory(lambda free: there + 10**9)
    command = [sys.executable, "-c", CODE.replace("free // 2", "free"), str(FREE)]
    other = subprocess.run(command, input="", capture_output=True, text=True, check=True)
    assert FREE - 1.1 * 10**9 < int(other.stdout) < FREE - 0.9 * 10**9


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"start": 1}', '{"start": null, "bytes": 1}'])
def test_a_claim_that_cannot_be_read_is_none(folder: Path, text: str) -> None:
    claim_memory(lambda free: 0)
    (folder / f"{os.getppid()}.json").write_text(text)
    assert claim_memory(lambda free: free) == FREE
    (folder / f"{os.getppid()}.json").write_text(
        json.dumps({"start": process_start(os.getppid()) + 1, "bytes": FREE})
    )
    assert claim_memory(lambda free: free) == FREE  # the id of a process that was another


def test_where_nothing_can_be_written_what_is_free_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(place: Path) -> Path:
        raise PermissionError(f"others can write to {place}")

    monkeypatch.setattr(memory_claims, "open_private", refuse)
    assert claim_memory(lambda free: free // 4) == FREE // 4
