from dataclasses import replace

import pytest
from sample_records import ENVIRONMENT
from study_files import arm, comparison, table_1, trial

from profiling.study.figure_groups import groups_data
from profiling.study.figures import figure_data, figures

OTHER = replace(ENVIRONMENT, cpu="Another CPU")


def test_groups_are_means_over_their_networks() -> None:
    (panel,) = groups_data([table_1()])

    top1, params, macs, minutes = panel.quantities
    assert panel.names == ("baseline", "hybrid")
    assert [(one.mean, one.reported_mean) for one in top1.groups] == [(55.0, None), (40.0, None)]
    assert [(one.mean, one.reported_mean) for one in params.groups] == [(0.5, 0.54), (20.0, 20.84)]
    assert [(one.mean, one.reported_mean) for one in macs.groups] == [(80.0, 79.1), (800.0, 899.2)]
    assert minutes.groups[0].mean == pytest.approx(100 / 60)


def test_a_group_of_which_one_lacks_a_figure_has_no_mean() -> None:
    survey = table_1()
    lacking = arm("resnet_56", trial("resnet_56", params=None))
    one = replace(survey, arms=(survey.arms[0], lacking, survey.arms[2]))

    (panel,) = groups_data([one])

    params = panel.quantities[1]
    assert [(one.members, one.mean) for one in params.groups] == [((0.2,), None), ((20.0,), 20.0)]
    assert "groups" in figures([one], {})


def test_reported_accuracies_of_groups_stand_beside_whole_trainings_alone() -> None:
    whole = comparison(
        "comparison",
        arm("resnet_20", trial("resnet_20", is_bounded=False)),
        arm("coatnet_0", trial("coatnet_0", is_bounded=False)),
    )

    (panel,) = groups_data([whole])

    assert [one.reported_mean for one in panel.quantities[0].groups] == [69.5, 58.11]


def test_times_of_two_machines_make_no_mean() -> None:
    survey = table_1()
    away = replace(survey.arms[1].trials[0], environment=OTHER)
    moved = replace(survey, arms=(*survey.arms[::2], replace(survey.arms[1], trials=(away,))))

    (panel,) = groups_data([moved])

    assert "training, minutes" not in [quantity.name for quantity in panel.quantities]
    assert groups_data([replace(survey, arms=survey.arms[:2])]) == []  # both of one group


def test_ablation_of_one_seed_has_no_interval() -> None:
    single = comparison(
        "eca_kernel", arm("baseline", trial(top1=0.5)), arm("k3", trial("k3", top1=0.52))
    )

    (panel,) = figure_data([single], {})["ablations"]

    (row,) = panel["rows"]

    assert row["difference"]["value"] == pytest.approx(0.02)
    assert (row["difference"]["low"], row["difference"]["high"]) == (None, None)
