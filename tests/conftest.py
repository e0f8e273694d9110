import json
import os
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest

from zoo.allocator import keep_memory

ROOT = Path(__file__).parents[1]
STARTED = time.time()

# What commands keep for later is not the user's here; all processes of a test run share it.
if "ZOO_CACHE" not in os.environ:
    CACHE = tempfile.TemporaryDirectory(prefix="zoo-tests-")
    os.environ["ZOO_CACHE"] = CACHE.name

# As commands do at their start, so that all tests of a process see one machine.
keep_memory()

# A shell that starts its jobs in the background lets them ignore Ctrl-C, and children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def torch_keeps_its_threads() -> Iterator[None]:
    """A test that left other threads behind would change the sums of those after it."""
    before = threads_of_torch()
    yield
    if before is not None:
        assert threads_of_torch() == before


def threads_of_torch() -> int | None:
    torch = sys.modules.get("torch")
    return None if torch is None else torch.get_num_threads()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    on_gpu = [item for item in items if item.get_closest_marker("gpu")]
    reason = no_gpu() if on_gpu else None
    if reason:
        for item in on_gpu:
            item.add_marker(pytest.mark.skip(reason=reason))


def no_gpu() -> str | None:
    from zoo.doctor import kernel_fault
    from zoo.machine import torch_facts

    facts = torch_facts()
    if facts.gpu is None:
        return "needs an NVIDIA GPU: torch finds none"
    return kernel_fault(facts, facts.gpu)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, exitstatus: int) -> None:
    """Write the outcome of a run where ZOO_TEST_REPORT says (make test-exports)."""
    path = os.environ.get("ZOO_TEST_REPORT")
    if not path:
        return
    from zoo.environment import capture, git_commit

    kinds = ("passed", "failed", "error", "skipped", "xfailed", "xpassed")
    reports = [(kind, report) for kind in kinds for report in terminalreporter.stats.get(kind, ())]
    tests = Counter((report.nodeid.split("[")[0], kind) for kind, report in reports)
    outcome = {
        "commit": git_commit(ROOT),
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "exit_status": int(exitstatus),
        "counts": {kind: sum(k == kind for k, _ in reports) for kind in kinds},
        "tests": [
            {"test": test, "outcome": kind, "count": n} for (test, kind), n in sorted(tests.items())
        ],
        "duration_s": round(time.time() - STARTED),
        "environment": capture().to_json(),
    }
    Path(path).write_text(json.dumps(outcome, indent=1) + "\n")
    terminalreporter.write_line(f"wrote {path}")
