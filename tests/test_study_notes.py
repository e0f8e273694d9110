from dataclasses import replace

from sample_records import gap
from study_files import ablation, arm, comparison, open_trial, table_1, trial

from profiling.record import SKIPPED, HostLoad
from profiling.report import DEMONSTRATION
from profiling.study.tables import study_tables


def test_every_table_of_bounded_runs_says_so() -> None:
    listed = study_tables([table_1(), ablation(), comparison("second-study", arm("x", trial()))])

    assert len(listed) == 4
    for table in listed:
        assert table.title.endswith("(cifar100, bounded runs)")
        assert {row["length"] for row in table.rows} <= {"bounded", None}  # in a CSV too
        assert table.notes[0] == (
            "Bounded runs, each training to 200 GMACs or 20 steps, whichever is more, not the "
            "recipe's full length."
        )


def test_whole_runs_are_not_called_bounded() -> None:
    whole = comparison("eca_kernel", arm("baseline", trial(is_bounded=False)))

    (table,) = study_tables([whole])

    assert table.title == "Ablation eca_kernel: Which is best? (cifar100)"
    assert not any("ounded" in note for note in table.notes)
    assert [row["length"] for row in table.rows] == ["whole"]


def test_notes_say_what_is_missing() -> None:
    base = trial()
    missing = gap(
        SKIPPED, "no C++ compiler found", backend="compile", source=base.measurements[0].source
    )
    one = comparison(
        "eca_kernel",
        arm(
            "baseline",
            replace(base, measurements=(*base.measurements, missing)),
            open_trial(seed=1),
        ),
        arm("gone", open_trial("resnet_32", failure="out of memory")),
    )

    (table,) = study_tables([one])

    assert "Not finished: 1 of 3 jobs." in table.notes
    assert "Failed: resnet_32 with seed 0 (out of memory)." in table.notes
    assert "Not measured: compile fp32 (no C++ compiler found), 1 record." in table.notes


def test_notes_say_which_images_and_how_busy() -> None:
    busy = HostLoad(others=0.5, steal=0.0)
    mini = trial(dataset="cifar100-mini")
    records = tuple(replace(record, host=busy) for record in mini.measurements)

    (table,) = study_tables(
        [comparison("eca_kernel", arm("baseline", replace(mini, measurements=records)))]
    )

    assert DEMONSTRATION in table.notes
    assert (
        "Measured accuracies: mean +- standard deviation (number of seeds) over 1,000 test images, "
        f"of the data set {'dd' * 6}." in table.notes
    )
    assert any(
        note.startswith("The machine was busy during 4 measurements") for note in table.notes
    )
