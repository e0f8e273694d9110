import pytest

from training.break_even import compile_line


@pytest.mark.parametrize(
    ("eager_step", "end"),
    [
        (0.050, "a step takes 20.0 ms instead of 50.0 ms: it pays after 2.0 epochs"),
        (0.021, "a step takes 20.0 ms instead of 21.0 ms: it pays after 60.0 epochs"),
        (0.020, "a step takes 20.0 ms instead of 20.0 ms: it does not pay"),
        (0.010, "a step takes 20.0 ms instead of 10.0 ms: it does not pay"),
    ],
)
def test_compiling_pays_once_the_epochs_have_saved_what_it_took(
    eager_step: float, end: str
) -> None:
    line = compile_line(
        compile_seconds=60.0, recompiles=0, steps=1000, seconds=20.0, eager_step=eager_step
    )

    assert line == f"compiled in 60.0 s, 0 recompiled later; {end}"
