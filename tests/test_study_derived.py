import math

import pytest
from study_files import seeds, trial

from profiling.study.derived import (
    LEAST_STEPS,
    Difference,
    Mean,
    bounds,
    compute_efficiency,
    difference,
    mean_of,
    parameter_efficiency,
)
from training import sweep_jobs

T_2 = 4.302653  # 97.5% quantiles of Student's t, from printed tables
T_4 = 2.776445


def test_mean_and_standard_deviation() -> None:
    mean = mean_of([0.50, None, 0.52, 0.54])

    assert mean == Mean(pytest.approx(0.52), pytest.approx(0.02), 3)  # squares: 4 + 0 + 4, by 2


def test_one_value_has_no_deviation_and_none_no_mean() -> None:
    assert mean_of([0.5]) == Mean(0.5, None, 1)
    assert mean_of([None]) is None


def test_efficiencies_are_those_of_the_study() -> None:
    assert parameter_efficiency(0.7233, 175_000) == pytest.approx(413.31, abs=0.01)  # its table 1
    assert compute_efficiency(0.7250, 127_500_000) == pytest.approx(0.569, abs=0.001)  # its slides


@pytest.mark.parametrize(("top1", "count"), [(None, 1000), (0.5, None), (0.5, 0)])
def test_no_efficiency_without_both(top1: float | None, count: int | None) -> None:
    assert parameter_efficiency(top1, count) is None
    assert compute_efficiency(top1, count) is None


def test_difference_over_pairs() -> None:
    baseline = {0: 0.50, 1: 0.52, 2: 0.54, 7: 0.99}  # seed 7 has no partner
    arm = {2: 0.55, 1: 0.55, 0: 0.52}

    found = difference(baseline, arm)

    # Differences 0.02, 0.03, 0.01: mean 0.02, deviation 0.01.
    reach = T_2 * 0.01 / math.sqrt(3)
    assert found == Difference(
        pytest.approx(0.02),
        pytest.approx(0.02 - reach, abs=1e-7),
        pytest.approx(0.02 + reach, abs=1e-7),
        3,
        True,
    )


def test_difference_without_pairs_is_welchs() -> None:
    found = difference({0: 0.50, 1: 0.52, 2: 0.54}, {3: 0.60, 4: 0.62, 5: 0.64})

    # Both variances 0.0004, so the error is sqrt(2 * 0.0004 / 3), with 4 degrees of freedom.
    reach = T_4 * math.sqrt(2 * 0.0004 / 3)
    assert found == Difference(
        pytest.approx(0.10),
        pytest.approx(0.10 - reach, abs=1e-7),
        pytest.approx(0.10 + reach, abs=1e-7),
        3,
        False,
    )


def test_one_pair_among_more_seeds_is_left_for_welch() -> None:
    found = difference({0: 0.50, 1: 0.52}, {1: 0.60, 2: 0.62})

    assert found is not None
    assert (found.is_paired, found.n) == (False, 2)
    assert found.value == pytest.approx(0.10)


@pytest.mark.parametrize(
    ("baseline", "arm", "is_paired"), [({0: 0.5}, {0: 0.6}, True), ({0: 0.5}, {1: 0.6}, False)]
)
def test_no_interval_of_one_seed(
    baseline: dict[int, float], arm: dict[int, float], is_paired: bool
) -> None:
    assert difference(baseline, arm) == Difference(pytest.approx(0.1), None, None, 1, is_paired)


def test_no_difference_to_nothing() -> None:
    assert difference({}, {0: 0.5}) is None
    assert difference({0: 0.5}, {}) is None


def test_bounds_say_how_far_the_trainings_went() -> None:
    small, large = trial(max_macs=2e11), trial(max_macs=6e11)
    beyond = trial("mlp_mixer_b16", max_macs=2e11, training_macs=6 * 10**12, steps=LEAST_STEPS)
    after = trial(max_macs=2e11, pretraining="simclr")

    assert bounds([small, beyond]) == (
        "bounded runs, each training to 200 GMACs or 20 steps, whichever is more, not the recipe's "
        "full length"
    )
    assert bounds([large, small, after]) == (
        "bounded runs, each training and each pre-training to 200 or 600 GMACs or 20 steps, "
        "whichever is more, not the recipe's full length"
    )


def test_the_steps_that_a_bound_leaves_are_those_of_the_sweep() -> None:
    assert LEAST_STEPS == sweep_jobs.LEAST_STEPS


def test_bounds_of_whole_runs() -> None:
    whole = seeds("resnet_20", 0.5, 0.6, is_bounded=False)

    assert bounds(whole) is None
    assert bounds([*whole, trial(max_macs=None)]) == (
        "bounded runs, not the recipe's full length; 2 of 3 trainings are whole"
    )
