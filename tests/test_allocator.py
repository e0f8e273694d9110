"""Memory that is freed stays with the process."""

import json
import os
import platform
import subprocess
import sys

import pytest

from profiling.process import WorkerProcess
from zoo import allocator, command

needs_glibc = pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="needs the C library glibc"
)

FAULTS = """
import json, resource, sys
if sys.argv[2:]:
    resource.setrlimit(resource.RLIMIT_AS, (2**36, 2**36))
from zoo.allocator import keep_memory, keeps_memory
if sys.argv[1] == "keep":
    keep_memory()
import torch
torch.set_num_threads(1)
x = torch.ones(1 << 20)  # 4 MiB
def step():
    parts = [x + i for i in range(8)]
    del parts
for _ in range(5):
    step()
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    step()
after = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
print(json.dumps([keeps_memory(), (after - before) / 20]))
"""


def printed(script: str, *words: str, **environment: str) -> str:
    """What a process without an allocator of the user's own prints."""
    own = {key: v for key, v in os.environ.items() if not key.startswith(allocator.USERS_OWN)}
    answer = subprocess.run(
        (sys.executable, "-c", script, *words),
        env=own | environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return answer.stdout.strip()


def faults(*words: str, **environment: str) -> tuple[bool, float]:
    """Whether a process keeps its memory, and page faults of a step of eight tensors of 4 MiB."""
    kept, each = json.loads(printed(FAULTS, *words, **environment))
    return kept, each


@needs_glibc
def test_a_step_has_no_page_faults_any_more() -> None:
    kept, each = faults("keep")

    assert kept
    assert each < 200  # of 8 * 1,024 pages; how many there are by default is chance
    assert faults("leave")[0] is False


@pytest.mark.parametrize("name", ["MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES"])
def test_what_the_user_has_set_stays(name: str) -> None:
    value = {"MALLOC_TRIM_THRESHOLD_": "131072", "GLIBC_TUNABLES": "glibc.malloc.arena_max=2"}

    assert faults("keep", **{name: value[name]})[0] is False


def test_limited_address_space_is_not_kept() -> None:
    assert faults("keep", "limited")[0] is False


@needs_glibc
def test_limited_address_space_is_given_back() -> None:
    script = """
import resource
from pathlib import Path
from zoo.allocator import keep_memory
resource.setrlimit(resource.RLIMIT_AS, (2**36, 2**36))
keep_memory()
def pages():
    return int(Path("/proc/self/statm").read_text().split()[0])
large = bytes(8 * 2**20)
del large  # blocks up to its size are put into the heap from now on, where nobody prevents it
blocks = [b"x" * 2**20 for _ in range(200)]
taken = pages()
del blocks[:-1]  # the last holds the end of a heap
print((taken - pages()) * resource.getpagesize() // 2**20)
"""

    assert int(printed(script)) >= 190  # MiB


@needs_glibc
def test_what_was_freed_can_be_given_back() -> None:
    script = """
from profiling.memory import _status_bytes
from zoo.allocator import keep_memory, release_memory
keep_memory()
blocks = [b"x" * 2**20 for _ in range(200)]
del blocks
kept = _status_bytes("VmRSS")
release_memory()
print((kept - _status_bytes("VmRSS")) // 2**20)
"""

    assert int(printed(script)) >= 190  # MiB


@needs_glibc
def test_a_training_keeps_its_memory_without_a_command() -> None:
    script = """
from training.processes import processes
from training.recipe import Runtime
from zoo.allocator import keeps_memory
with processes(Runtime(device="cpu")):
    print(keeps_memory())
"""

    assert printed(script).endswith("True")


@needs_glibc
def test_commands_and_workers_keep_theirs() -> None:
    assert command.run("test", lambda: int(not allocator.keeps_memory())) == 0
    with WorkerProcess(threads=1) as worker:
        found = worker.ask("hello", limit_s=120, device="cpu", threads=1)
    assert found["keeps_memory"] is True
