"""The gate on time: its statistics, its two sides, what it says, and that it finds a slowdown."""

import math
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path

import pytest
from benchmarks.gates.hot_paths import hot_paths
from benchmarks.gates.lanes import (
    Broken,
    Samples,
    Worker,
    _prepared,
    _time,
    run_pairs,
)
from benchmarks.gates.outcome import judge, markdown, samples_from_json
from benchmarks.gates.plants import PLANTS, drawn
from benchmarks.gates.sides import base_commit, write_commit, write_tree
from benchmarks.gates.stats import holm, least_pairs, log_ratios, p_slower, ratio
from gate_samples import samples

from zoo.errors import ZooError

ROOT = Path(__file__).parents[1]
START = "start-zoo-train"


# Statistics ---------------------------------------------------------------------------------------


def test_signed_ranks_against_all_choices_of_signs() -> None:
    logs = (0.3, -0.1, 0.25, 0.05, -0.2, 0.4)
    ranks = {size: rank for rank, size in enumerate(sorted(map(abs, logs)), start=1)}
    found = sum(ranks[abs(value)] for value in logs if value > 0)

    sums = [
        sum(rank for rank, sign in zip(ranks.values(), signs, strict=True) if sign)
        for signs in product((False, True), repeat=len(logs))
    ]

    assert p_slower(logs) == sum(total >= found for total in sums) / len(sums)


def test_p_of_all_slower_and_of_none() -> None:
    assert p_slower([0.1] * 10) == 2**-10
    assert p_slower([-0.1] * 10) == 1
    assert p_slower([0.0] * 10) == 1


def test_blocks_are_compared_with_their_neighbours() -> None:
    slow_core_between = [[2.0, 4.0, 2.0], [4.0]], [[3.0, 6.0, 9.0], [2.0]]

    assert log_ratios(*slow_core_between) == (math.log(1.5), -math.log(2))


def test_one_wild_pair_does_not_move_the_estimate() -> None:
    logs = [math.log(1.15)] * 9 + [math.log(50.0)]

    assert ratio(logs) == pytest.approx(1.15)


def test_holm_by_hand() -> None:
    # Sorted: 0.01 * 4, 0.02 * 3, 0.03 * 2 but no less than the one before, 0.5 * 1.
    found = holm({"d": 0.5, "a": 0.01, "c": 0.03, "b": 0.02})

    assert found == pytest.approx({"a": 0.04, "b": 0.06, "c": 0.06, "d": 0.5})


@pytest.mark.parametrize("tests", [1, 12, 43])
def test_least_pairs_can_be_significant_and_one_less_cannot(tests: int) -> None:
    pairs = least_pairs(tests)

    assert tests * p_slower([0.1] * pairs) <= 0.05 < tests * p_slower([0.1] * (pairs - 1))


# What it says -------------------------------------------------------------------------------------


def test_a_slowdown_is_found_and_named() -> None:
    outcome = judge(samples(one=1.0, two=1.15, three=0.8))

    assert [row.name for row in outcome.slower] == ["two"]
    assert outcome.complaint == "two takes 15.0% more CPU time"
    table = markdown(outcome, base="main", change="the working tree")
    assert table.startswith(
        "### Slower: the working tree against main\n\n**two takes 15.0% more CPU time**\n"
    )
    assert "| two | 2.000 | 2.300 | +15.0% | 0.003 | **slower** |\n| one |" in table


@pytest.mark.parametrize("times", [1.0, 1.05, 1.09])
def test_a_small_slowdown_is_tolerated(times: float) -> None:
    outcome = judge(samples(one=times))

    assert outcome.complaint is None
    assert markdown(outcome, base="main", change="x").startswith("### Not slower: x against main\n")


def test_a_large_but_uncertain_slowdown_is_tolerated() -> None:
    found = samples(one=1.3)
    found.timed["one"].change[:3] = [[0.001], [0.001], [0.001]]  # three pairs of ten say otherwise

    outcome = judge(found)

    assert outcome.rows[0].ratio > 1.1
    assert outcome.complaint is None


def test_what_was_not_compared_is_said() -> None:
    found = samples(one=1.0)
    found.skipped["two"] = "the package openvino is not installed"
    found.new["three"] = "AttributeError: no such thing"

    table = markdown(judge(found), base="main", change="x")

    assert "Not in the base: three (AttributeError: no such thing)\n" in table
    assert table.endswith("Not on this machine: two (the package openvino is not installed)\n")


def test_too_few_pairs_and_broken_paths_shut_the_gate() -> None:
    few, broken = samples(pairs=4, one=1.0), samples(one=1.0)
    broken.broken["two"] = "the answer is wrong"

    assert judge(few).complaint == (
        "1 hot path would take 5 pairs of processes to judge, and 60 s were enough for 4: give "
        "more time, or fewer hot paths"
    )
    assert judge(broken).complaint == "1 hot path broken, such as two: the answer is wrong"
    assert judge(Samples()).complaint == "no hot path runs on both sides"


def test_samples_survive_json() -> None:
    found = samples(one=1.1)

    assert samples_from_json(asdict(found)) == found


# Two sides ----------------------------------------------------------------------------------------


def git(folder: Path, *words: str) -> str:
    identity = ("-c", "user.name=x", "-c", "user.email=x@example.org")
    command = ("git", "-C", str(folder), *identity, *words)
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    """Five small files of code, committed, then changed."""
    root = tmp_path / "repository"
    for name in ("zoo", "training", "export", "profiling"):
        (root / name).mkdir(parents=True)
        (root / name / "__init__.py").write_text("old\n")
    (root / "cifar_zoo.py").write_text("old\n")
    git(root, "init", "-q", "-b", "main")
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "first")
    (root / "zoo" / "__init__.py").write_text("new\n")
    return root


def test_both_sides_have_their_code_and_the_repository_is_left_alone(
    repository: Path, tmp_path: Path
) -> None:
    before = git(repository, "status", "--porcelain"), git(repository, "worktree", "list")
    commit = base_commit(repository, "main")

    write_commit(repository, commit, tmp_path / "base")
    write_tree(repository, tmp_path / "change")

    texts = [(tmp_path / side / "zoo" / "__init__.py").read_text() for side in ("base", "change")]
    assert texts == ["old\n", "new\n"]
    assert (tmp_path / "base" / "cifar_zoo.py").read_text() == "old\n"
    assert (git(repository, "status", "--porcelain"), git(repository, "worktree", "list")) == before


def test_base_is_where_the_branch_left(repository: Path) -> None:
    first = git(repository, "rev-parse", "HEAD")
    git(repository, "checkout", "-q", "-b", "mine")
    git(repository, "commit", "-q", "-a", "-m", "mine")
    git(repository, "checkout", "-q", "main")
    (repository / "cifar_zoo.py").write_text("theirs\n")
    git(repository, "commit", "-q", "-a", "-m", "theirs")
    git(repository, "checkout", "-q", "mine")

    assert base_commit(repository, "main") == first


def test_unknown_base(repository: Path) -> None:
    with pytest.raises(ZooError) as caught:
        base_commit(repository, "nowhere")

    assert str(caught.value) == (
        "'nowhere' is no commit to compare with: name a branch (git merge-base nowhere HEAD: "
        "fatal: Not a valid object name nowhere)"
    )


# The whole ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("sides") / "clean"
    write_tree(ROOT, home)
    return home


def compared(homes: Sequence[Path], folder: Path, *, pairs: int = 5) -> Samples:
    return run_pairs(
        homes, (folder, folder), [START], cold=(), pairs=pairs, seconds=600, tell=lambda text: None
    )


@pytest.mark.slow
def test_planted_work_is_found_and_equal_code_passes(clean: Path, tmp_path: Path) -> None:
    planted = tmp_path / "planted"
    write_tree(clean, planted)
    PLANTS["start"].put(planted, 1_000_000)  # some 60 ms, of some 90 ms

    alike, slower = (compared((clean, home), tmp_path) for home in (clean, planted))

    assert judge(alike).complaint is None
    assert [row.name for row in judge(slower).slower] == [START]
    assert [len(pair) for pair in slower.timed[START].base] == [slower.timed[START].blocks] * 5


def test_a_path_that_one_side_lacks(clean: Path, tmp_path: Path) -> None:
    lacking = tmp_path / "lacking"
    write_tree(clean, lacking)
    (lacking / "cifar_zoo.py").write_text("raise SystemExit(3)\n")

    new, broken = (
        compared(homes, tmp_path, pairs=1) for homes in ((lacking, clean), (clean, lacking))
    )

    assert list(new.new) == list(broken.broken) == [START]
    assert new.new[START].startswith("CalledProcessError: Command '")
    assert (new.timed, broken.timed) == ({}, {})


@pytest.mark.parametrize(
    ("faults", "has_run", "kind"),
    [
        ("both", False, "failing"),
        ("both", True, "broken"),
        ("change", False, "broken"),
        ("base", False, "new"),
    ],
)
def test_whose_fault_it_is(faults: str, has_run: bool, kind: str) -> None:
    found = samples(pairs=int(has_run), one=1.0)
    sides = [FakeWorker(faults in (side, "both")) for side in ("base", "change")]

    assert _prepared(sides, ["one"], found) == []

    kept = {name: getattr(found, name) for name in ("failing", "broken", "new")}
    assert kept == {name: {"one": "no"} if name == kind else {} for name in kept}
    assert (judge(found).complaint or "").startswith("1 hot path broken") == (kind == "broken")


def test_a_path_that_fails_on_both_sides_does_not_shut_the_gate() -> None:
    found = samples(one=1.0)
    found.failing["two"] = "the download failed"

    outcome = judge(found)

    assert outcome.complaint is None
    table = markdown(outcome, base="main", change="x")
    assert "Fails on both sides: two (the download failed)\n" in table


def test_a_path_that_fails_under_way_is_asked_of_the_other_side_too() -> None:
    found = samples(pairs=0, one=1.0)

    went_on = _time([FakeWorker(True), FakeWorker(True)], "one", found, starts_with=1)

    assert (went_on, found.failing, found.broken) == (False, {"one": "no"}, {})


class FakeWorker:
    """The process of a side whose paths all fail, or none does."""

    def __init__(self, is_faulty: bool) -> None:
        self.answer = {"fault": "no"} if is_faulty else {"s": 1.0}

    def send(self, do: str, **arguments: object) -> None:
        pass

    def receive(self) -> dict[str, object]:
        return self.answer

    def ask(self, do: str, **arguments: object) -> dict[str, object]:
        return self.answer


def test_code_from_elsewhere_is_not_timed(clean: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()

    with Worker(tmp_path / "empty", tmp_path) as worker, pytest.raises(Broken) as caught:
        worker.ask("prepare", name=START)

    message = str(caught.value)
    assert message.startswith(f"the process of {tmp_path / 'empty'} ended with exit code 1: ")
    assert f"the code to be timed is in {tmp_path / 'empty'}, but zoo was found at " in message


# The paths and the plants -------------------------------------------------------------------------


def test_names_are_unique_and_every_backend_has_its_paths() -> None:
    names = [path.name for path in hot_paths()]

    assert len(set(names)) == len(names)
    assert sum(name.startswith("forward-") for name in names) == 6 * 6 * 2
    assert {path.name for path in hot_paths() if path.is_gated} >= {
        *("train-step", "augmentation", "export-onnx", "load-onnx", START),
    }


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    path = next(path for path in hot_paths() if path.name == "forward-openvino-resnet_20-b1")
    monkeypatch.setattr(
        "benchmarks.gates.hot_paths.find_spec", lambda name: None if name == "openvino" else name
    )

    assert path.missing() == "the package openvino is not installed"


@pytest.mark.parametrize("name", PLANTS)
def test_plants_fit_the_code(name: str, clean: Path, tmp_path: Path) -> None:
    home, plant = tmp_path / "home", PLANTS[name]
    (home / plant.file).parent.mkdir(parents=True)
    (home / plant.file).write_text((clean / plant.file).read_text())

    plant.put(home, 7)

    text = (home / plant.file).read_text()
    compile(text, plant.file, "exec")
    assert text.count(f"{plant.work}(7)") == 1
    assert plant.slows in {path.name for path in hot_paths() if path.is_gated}


def test_seeds_draw_many_places() -> None:
    assert len({drawn(seed) for seed in range(20)}) >= 7


@pytest.mark.slow
def test_rows_are_saved_and_compared_by_pytest_benchmark(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", "-p", "no:xdist", "-k", START, "-q"]
    command += [
        "tests/benchmarks",
        f"--benchmark-storage=file://{tmp_path}",
        "--benchmark-autosave",
    ]

    # Of a test run around it with several workers it would take over that it is one of them.
    own = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    first, second = (
        subprocess.run(
            [*command, *options], cwd=ROOT, env=own, capture_output=True, text=True, check=False
        )
        for options in ((), ("--benchmark-compare", "--benchmark-compare-fail=median:900%"))
    )

    assert (first.returncode, second.returncode) == (0, 0), first.stdout + second.stdout
    assert len(list(tmp_path.rglob("*.json"))) == 2
    assert f"test_hot_path[{START}] (0001_" in second.stdout
