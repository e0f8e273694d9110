import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from training.sweep_claims import STALE_SECONDS, Holder, claim, holder, is_alive

HOLD = """
import subprocess, sys, time
from pathlib import Path
from training.sweep_claims import claim
mine = claim(Path(sys.argv[1]))
child = subprocess.Popen(["sleep", "60"], pass_fds=[mine.handle]) if len(sys.argv) > 2 else None
print(child.pid if child else 0, flush=True)
time.sleep(60)
"""


def claiming(path: Path, *more: str) -> tuple[subprocess.Popen[str], int]:
    """A process that claims, and the child that it has where there is `more`."""
    command = (sys.executable, "-c", HOLD, str(path), *more)
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, int(process.stdout.readline())


def ended(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    assert process.stdout is not None
    process.stdout.close()


def foreign(path: Path, *, age: float) -> None:
    """The claim of another host, untouched for `age` seconds."""
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1}))
    os.utime(path, (time.time() - age,) * 2)


def test_one_claim_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "job.json"
    first = claim(path)

    second = claim(path)

    assert first is not None
    assert second is None
    assert holder(path) == Holder(socket.gethostname(), os.getpid())
    assert str(holder(path)) == f"process {os.getpid()} of {socket.gethostname()}"
    assert is_alive(path)
    assert [file.name for file in tmp_path.iterdir()] == ["job.json"]
    first.release()


def test_a_released_claim_is_free(tmp_path: Path) -> None:
    path = tmp_path / "job.json"
    first = claim(path)
    assert first is not None
    first.release()

    again = claim(path)

    assert again is not None
    again.release()
    assert list(tmp_path.iterdir()) == []
    assert not is_alive(path)
    assert holder(path) is None


def test_a_claim_of_a_dead_process_is_taken_over(tmp_path: Path) -> None:
    path = tmp_path / "job.json"
    process, _ = claiming(path)
    while_alive = claim(path)
    ended(process)

    taken = claim(path)

    assert while_alive is None
    assert taken is not None
    assert holder(path) == Holder(socket.gethostname(), os.getpid())
    assert taken.beat()
    taken.release()


def test_a_claim_lives_as_long_as_a_child_that_inherited_it(tmp_path: Path) -> None:
    path = tmp_path / "job.json"
    process, child = claiming(path, "with a child")
    ended(process)
    orphaned = claim(path)
    os.kill(child, signal.SIGKILL)

    deadline = time.monotonic() + 30
    taken = None
    while taken is None and time.monotonic() < deadline:
        taken = claim(path)

    assert orphaned is None
    assert taken is not None
    taken.release()


@pytest.mark.parametrize(
    ("age", "is_free"), [(STALE_SECONDS - 60, False), (STALE_SECONDS + 60, True)]
)
def test_a_claim_of_another_host_is_dead_when_it_is_stale(
    age: float, is_free: bool, tmp_path: Path
) -> None:
    path = tmp_path / "job.json"
    foreign(path, age=age)

    alive = is_alive(path)
    taken = claim(path)

    assert alive is not is_free
    assert (taken is not None) is is_free
    if taken is not None:
        taken.release()


def test_a_beat_keeps_a_claim_fresh_and_notices_its_loss(tmp_path: Path) -> None:
    path = tmp_path / "job.json"
    mine = claim(path)
    assert mine is not None
    os.utime(path, (0, 0))

    kept = mine.beat()
    age = time.time() - path.stat().st_mtime
    path.unlink()
    foreign(path, age=0)
    lost = mine.beat()
    mine.release()

    assert kept
    assert age < 60
    assert not lost
    assert holder(path) == Holder("elsewhere", 1)  # left to whoever has it now


def test_a_damaged_claim_is_of_nobody(tmp_path: Path) -> None:
    path = tmp_path / "job.json"
    path.write_text("{")
    os.utime(path, (0, 0))

    taken = claim(path)

    assert taken is not None
    taken.release()
