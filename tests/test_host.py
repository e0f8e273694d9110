"""Who used the CPU meanwhile, from files like those of /proc and from this machine's own."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from profiling.bench import benchmark
from profiling.host import LoadMeter, busy_ticks, idlest_core, least_busy
from profiling.process import START_LIMIT_S, WorkerProcess
from profiling.record import HostLoad
from profiling.runs import model_subjects


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A /proc of two processes of ours, this one and number 7, as it was at the start."""
    set_times(tmp_path, cpu="100 0 50 1000 10 0 0 5 0 0", own=20, worker=30)
    (tmp_path / "cpuinfo").write_text("cpu MHz\t\t: 2000.0\nmodel: x\ncpu MHz\t\t: 3000.5\n")
    return tmp_path


def set_times(proc: Path, *, cpu: str, own: int, worker: int) -> None:
    (proc / "stat").write_text(f"cpu  {cpu}\ncpu0 1 2 3\nctxt 5\n")
    for pid, ticks in ((os.getpid(), own), (7, worker)):
        (proc / str(pid)).mkdir(exist_ok=True)
        text = f"{pid} (a ) b) S 1 1 1 0 -1 0 0 0 0 0 {ticks} 1 1 1 20 0\n"
        (proc / str(pid) / "stat").write_text(text)


def test_shares_by_hand(proc: Path) -> None:
    meter = LoadMeter(lambda: [7], proc=proc)
    # 200 ticks later: 100 at work, of which 60 are ours, 80 idle, 20 stolen.
    set_times(proc, cpu="180 0 70 1080 10 0 0 25 0 0", own=40, worker=70)

    assert meter.read() == HostLoad(others=0.2, steal=0.1, clock_mhz=2500.2)


def test_a_worker_that_is_gone_does_no_harm(proc: Path) -> None:
    meter = LoadMeter(lambda: [7, 8], proc=proc)
    set_times(proc, cpu="200 0 50 1100 10 0 0 5 0 0", own=120, worker=30)

    assert meter.read() == HostLoad(others=0.0, steal=0.0, clock_mhz=2500.2)


def test_too_short_a_time_says_nothing(proc: Path) -> None:
    meter = LoadMeter(lambda: [7], proc=proc)
    set_times(proc, cpu="110 0 50 1005 10 0 0 5 0 0", own=20, worker=30)

    assert meter.read() is None


def test_a_system_that_does_not_tell(tmp_path: Path) -> None:
    assert LoadMeter(list, proc=tmp_path).read() is None


@pytest.mark.parametrize(
    ("others", "steal", "cores", "of_core", "is_busy"),
    [
        (0.03, 0.01, 2, None, False),
        (0.03, 0.03, 2, None, True),
        (0.001, 0.0, 64, 0.05, False),
        (1 / 64, 0.0, 64, None, True),  # one process
        (0.001, 0.0, 64, 0.2, True),
        (0.06, 0.03, None, None, False),  # older records do not tell: of one core at least
        (0.2, 0.0, None, None, True),
    ],
)
def test_when_a_machine_is_busy(
    others: float, steal: float, cores: int | None, of_core: float | None, is_busy: bool
) -> None:
    assert HostLoad(others=others, steal=steal, cores=cores, of_core=of_core).is_busy == is_busy


def test_who_else_had_the_measured_core(proc: Path) -> None:
    def lines(*of_core: str) -> None:
        text = "".join(f"cpu{core} {ticks}\n" for core, ticks in enumerate(of_core))
        total = [sum(map(int, column)) for column in zip(*map(str.split, of_core), strict=True)]
        (proc / "stat").write_text(f"cpu  {' '.join(map(str, total))}\n{text}ctxt 5\n")

    lines("100 0 50 500 10 0 0 5", "0 0 0 600 0 0 0 0")
    meter = LoadMeter(lambda: [7], core=0, proc=proc)
    # 100 ticks later the first worked 60, of which 40 are our worker's, and lost 10 to others.
    set_times(proc, cpu="0", own=20, worker=70)
    lines("150 0 60 530 10 0 0 15", "0 0 0 700 0 0 0 0")

    found = meter.read()

    assert found is not None
    assert (found.core, found.cores, found.of_core) == (0, 2, 0.3)
    assert (found.others, found.steal) == (0.1, 0.05)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc, which only Linux has")
def test_a_foreign_process_is_seen_and_an_own_one_is_not() -> None:
    meter = LoadMeter(list)
    spin = (sys.executable, "-c", "while True: pass")
    with subprocess.Popen(spin) as foreign:
        mine = LoadMeter(lambda: [foreign.pid])
        time.sleep(1)
        as_foreign, as_own = meter.read(), mine.read()
        foreign.kill()

    assert as_foreign is not None
    assert as_own is not None
    assert as_foreign.is_busy
    assert as_foreign.cores == as_own.cores is not None
    assert (as_foreign.others - as_own.others) * as_own.cores > 0.05  # it may share its core


def test_core_that_worked_least(tmp_path: Path) -> None:
    stat = tmp_path / "stat"
    stat.write_text(
        "cpu  1 2\ncpu0 100 0 50 900 10 0 0 5 0 0\ncpu1 200 0 0 800 0 0 0 0 0 0\nctxt 5\n"
    )
    before = busy_ticks(tmp_path)
    # Of 100 ticks the first worked 20 and lost 5, the other worked 24.
    stat.write_text("cpu  1 2\ncpu0 115 0 55 970 15 0 0 10 0 0\ncpu1 224 0 0 876 0 0 0 0 0 0\n")

    after = busy_ticks(tmp_path)

    assert before == {0: 155, 1: 200}
    assert least_busy(before, after, {0, 1}) == 1
    assert least_busy(before, after, {0}) is None
    assert least_busy(before, before, {0, 1}) == 1
    assert least_busy({}, {}, {0, 1}) is None


def test_core_of_this_machine() -> None:
    core = idlest_core(look_s=0.01)

    assert core is None or core in os.sched_getaffinity(0)


@pytest.mark.skipif(idlest_core(look_s=0.0) is None, reason="needs cores to choose from")
def test_one_thread_is_kept_to_one_core_and_more_are_not() -> None:
    core = max(os.sched_getaffinity(0))
    greeting = {"device": "cpu", "threads": 1, "limit_s": START_LIMIT_S}

    with WorkerProcess(threads=1) as kept, WorkerProcess(threads=1) as free:
        kept.ask("hello", core=core, **greeting)
        free.ask("hello", core=None, **greeting)

        assert os.sched_getaffinity(kept.pid) == {core}
        assert os.sched_getaffinity(free.pid) == os.sched_getaffinity(0)


@pytest.mark.skipif(idlest_core(look_s=0.0) is None, reason="needs cores to choose from")
@pytest.mark.parametrize("threads", [1, 2])
def test_a_measurement_tells_its_core(threads: int) -> None:
    subject = next(one for one in model_subjects("resnet_20") if one.backend == "eager")

    (record,) = benchmark([subject], batches=(1,), budget_s=1.0, threads=threads)

    assert record.host is not None
    assert (record.host.core in os.sched_getaffinity(0)) == (threads == 1)
    assert (record.host.of_core is not None) == (threads == 1)
