"""How steps of make gpu share the time of a call, and what becomes of those that go wrong."""

import re
import time
from dataclasses import replace
from pathlib import Path

import pytest
from benchmarks.evidence import child, measurements, runner
from benchmarks.evidence.place import Place
from benchmarks.evidence.rehearsal import write_pictures
from benchmarks.evidence.speeds import Speeds
from benchmarks.evidence.store import Store
from benchmarks.evidence.task import Harvest
from benchmarks.evidence.trainings import Training, incomplete_run
from evidence_files import a_place, run, speaking

from profiling.evidence import CUT, FAILED, OK, SKIPPED
from zoo.files import read_json


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return a_place(tmp_path)


def test_a_step_that_fails_is_stored_with_its_last_words_and_the_rest_goes_on(place: Place) -> None:
    broken = "import sys; print('noise', file=sys.stderr); sys.exit('zoo-train: no such thing')"

    found = run(place, speaking("broken", broken), speaking("fine", "print('done')"))

    assert (found["broken"].status, found["broken"].reason) == (FAILED, "zoo-train: no such thing")
    assert (found["fine"].status, found["fine"].facts) == (OK, {"said": "done"})
    assert "noise" in (place.store.folder / "log.txt").read_text()


def test_a_step_without_its_package_is_skipped(place: Place) -> None:
    any_of = ("tensorrt", "tensorrt_bindings")

    found = run(place, speaking("engine", "", any_of=any_of))

    assert found["engine"].status == SKIPPED
    assert found["engine"].reason == "tensorrt and tensorrt_bindings is not installed"


def test_a_test_file_that_cannot_be_imported_does_not_stop_the_others(
    place: Place, tmp_path: Path
) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_needy.py").write_text("import a_package_that_is_not_there\n")
    (tmp_path / "tests" / "test_plain.py").write_text("def test_it() -> None:\n    pass\n")
    files = sorted(str(file) for file in (tmp_path / "tests").iterdir())
    task = measurements.tests(replace(measurements.TOY, tests=tuple(files)))

    found = run(place, task, seconds=300.0)["tests"]

    assert (found.status, found.facts["counts"]) == (FAILED, {"passed": 1, "error": 1})
    assert found.reason is not None
    assert found.reason.startswith("1 failed, the first: ERROR ")


def test_a_result_that_cannot_be_read_is_a_failure(place: Place) -> None:
    def harvest(place: Place, printed: list[str]) -> Harvest:
        raise ValueError("no number")

    found = run(place, speaking("odd", "", harvest=harvest))

    assert found["odd"].reason == "what it left cannot be read: ValueError: no number"


def test_a_step_beyond_its_limit_failed_and_one_at_the_end_of_the_call_was_cut(
    place: Place,
) -> None:
    sleep = "import time; time.sleep(60)"

    found = run(
        place,
        speaking("slow", sleep, limit_s=1.0),
        speaking("late", sleep),
        seconds=4.0,
    )

    assert (found["slow"].status, found["slow"].reason) == (FAILED, "its 1 s were over")
    assert found["late"].status == CUT


def test_one_that_ignores_the_request_to_stop_is_ended_with_all_that_it_began(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "GRACE_S", 0.3)
    deaf = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "other = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'], "
        "process_group=0); "
        f"open({str(tmp_path / 'pid')!r}, 'w').write(str(other.pid)); time.sleep(60)"
    )

    found = run(place, speaking("deaf", deaf, limit_s=2.0))

    assert found["deaf"].status == FAILED
    assert is_gone(int((tmp_path / "pid").read_text()))


def is_gone(pid: int) -> bool:
    """Whether a process has ended; one that nobody has waited for yet counts."""
    for _ in range(50):
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.1)
    return False


def test_what_does_not_fit_is_left_and_what_fits_is_done(place: Place) -> None:
    found = run(place, speaking("long", "", predicted_s=500.0), speaking("short", ""))

    assert found.keys() == {"short"}


def test_a_training_begins_if_later_calls_can_finish_it(place: Place) -> None:
    long = speaking("training", "", predicted_s=500.0, can_resume=True)

    without = run(place, long, seconds=120.0)
    found = run(place, long, seconds=120.0, later_s=600.0)

    assert without == {}
    assert found["training"].status == OK


def test_a_training_that_predicts_to_need_too_long_is_stopped(place: Place) -> None:
    code = (
        "import sys, time; print('predicted: 10:00 for the steps and evaluations of this run on "
        "this machine, about 1234 img/s', file=sys.stderr, flush=True); time.sleep(60)"
    )

    found = run(place, speaking("training", code, can_resume=True))["training"]

    assert found.status == CUT
    assert found.reason is not None
    assert found.reason.startswith("it needs 7:4")  # 10:00 over the tolerance
    assert found.facts["images_per_s"] == 1234.0  # the next plan knows better


def test_what_a_step_works_on_must_be_there(place: Place) -> None:
    waits = speaking("second", "", is_ready=lambda place: "first" in place.store.outcomes())

    found = run(place, waits, speaking("first", ""))
    without = run(replace(place, store=Store(place.work / "other")), waits)

    assert list(found) == ["first", "second"]
    assert without == {}


def meeting(folder: Path, mine: str, other: str) -> str:
    """Code that ends only while the other one is under way too."""
    return (
        f"import pathlib, time; f = pathlib.Path({str(folder)!r}); (f / {mine!r}).touch()\n"
        f"while not (f / {other!r}).exists(): time.sleep(0.02)"
    )


def test_trainings_run_side_by_side_only_if_that_is_wanted(place: Place, tmp_path: Path) -> None:
    together = [
        speaking("a", meeting(tmp_path, "a", "b"), can_resume=True),
        speaking("b", meeting(tmp_path, "b", "a"), can_resume=True),
    ]

    found = run(place, *together, jobs=2)
    apart = run(place, speaking("c", meeting(tmp_path, "c", "d"), can_resume=True), seconds=2.0)

    assert found["a"].status == found["b"].status == OK
    assert apart["c"].status == CUT


def test_the_next_training_starts_before_the_end_of_the_present_one(
    place: Place, tmp_path: Path
) -> None:
    ending = "import sys; print('epoch 299/300  0:10 left', file=sys.stderr, flush=True)\n"
    first = speaking("a", ending + meeting(tmp_path, "a", "b"), can_resume=True)
    second = speaking("b", meeting(tmp_path, "b", "a"), can_resume=True)

    found = run(place, first, second, overlap=True)

    assert found["a"].status == found["b"].status == OK


def test_a_measurement_never_runs_beside_a_training(place: Place, tmp_path: Path) -> None:
    first = speaking("a", meeting(tmp_path, "a", "b"), can_resume=True, limit_s=1.5)

    found = run(place, first, speaking("b", f"open({str(tmp_path / 'b')!r}, 'w')"), jobs=2)

    assert found["a"].status == FAILED
    assert found["b"].status == OK


@pytest.mark.slow
def test_an_interrupted_training_goes_on_in_the_next_call(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "SPOKEN_S", 0.05)
    write_pictures(place.work / "pictures")
    training = Training(
        model="ghost_resnet_20",
        recipe="study",
        seed=0,
        epochs=20,
        dataset=f"folder:{place.work / 'pictures'}",
        is_full=True,
        compile=False,
        batch_size=16,
    )
    task = training.task(Speeds([], device="cpu"), "train")

    def interrupt(text: str) -> None:
        if re.search("epoch ([2-9]|1[0-5])/20", text):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(place, task, seconds=300.0, tell=interrupt)
    cut = place.store.outcomes()[task.name]
    begun = incomplete_run(place.runs_of(task.name))
    found = run(place, task, seconds=300.0)

    assert (cut.status, cut.reason) == (CUT, "the call was interrupted")
    assert 2 <= cut.facts["epochs_done"] < 20
    assert begun is not None
    assert found[task.name].status == OK
    (stored,) = place.store.read().runs
    assert stored.meta.started_at == read_json(begun / "meta.json")["started_at"]
    assert [line["epoch"] for line in stored.metrics] == list(range(1, 21))
