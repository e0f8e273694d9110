from pathlib import Path

import pytest

from training.sweep_file import read_sweep
from training.sweep_jobs import Scale
from zoo.errors import ZooError

GRID = """
dataset = "cifar100-mini"
seeds = [0, 7]
epochs = 20
max_macs = 6e11

[[job]]
name = "rates"
model = ["resnet_20", "resnet_32"]
recipe = "quick"
set = { peak_lr = [0.1, 0.3], full_train = false }

[[job]]
model = "resnet_56"
epochs = 5
image_size = 64
pretrained = true
pretraining = "byol"
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "sweep.toml"
    path.write_text(text)
    return path


def test_lists_span_a_grid(tmp_path: Path) -> None:
    rates, single = read_sweep(write(tmp_path, GRID), Scale())

    assert rates.name == "rates"
    assert [label for label, _ in rates.jobs] == [
        "resnet_20 peak_lr=0.1",
        "resnet_20 peak_lr=0.3",
        "resnet_32 peak_lr=0.1",
        "resnet_32 peak_lr=0.3",
    ] * 2
    job = rates.jobs[-1][1]
    assert (job.model, job.recipe, job.seed, job.epochs) == ("resnet_32", "quick", 7, 20)
    assert job.settings == {"peak_lr": "0.3", "full_train": "false"}
    assert (job.dataset, job.max_macs) == ("cifar100-mini", 6e11)
    assert len({job.id for _, job in rates.jobs}) == 8
    other = single.jobs[0][1]
    assert (single.name, other.recipe, other.epochs, other.image_size) == ("2", "study", 5, 64)
    assert (other.pretrained, other.pretraining) == (True, "byol")


def test_the_command_line_comes_first(tmp_path: Path) -> None:
    scale = Scale(seeds=(3,), epochs=1, dataset="cifar10", recipe="smoke", max_macs=1e9)

    groups = read_sweep(write(tmp_path, GRID), scale)

    for _, job in [pair for group in groups for pair in group.jobs]:
        assert (job.seed, job.epochs, job.dataset) == (3, 1, "cifar10")
        assert (job.recipe, job.max_macs) == ("smoke", 1e9)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "sweep.toml names no job: add a [[job]] with a model"),
        ("a = ", "sweep.toml is not valid TOML: Invalid value (at end of document)"),
        ("sedes = [0]", "sweep.toml has no key 'sedes': did you mean seeds?"),
        ("seeds = []", "sweep.toml: seeds must be whole numbers of 0 or more, got []"),
        ("seeds = [-1]", "sweep.toml: seeds must be whole numbers of 0 or more, got [-1]"),
        ("seeds = 1", "sweep.toml: seeds must be a list, got 1"),
        ("epochs = 0", "sweep.toml: epochs must be a whole number of 1 or more, got 0"),
        ("max_macs = true", "sweep.toml: max_macs must be a number above 0, got True"),
        ("max_macs = inf", "sweep.toml: max_macs must be a number above 0, got inf"),
        ("job = [1]", "sweep.toml: job 1: job must be a table, got 1"),
        (
            "[[job]]\nrecipe = 'study'",
            'sweep.toml: job 1 has no model: add one, such as model = "resnet_20"',
        ),
        (
            "[[job]]\nmodle = 'resnet_20'",
            "sweep.toml: job 1 has no key 'modle': did you mean model?",
        ),
        ("[[job]]\nmodel = [1]", "sweep.toml: job 1: model must be a text, got 1"),
        (
            "[[job]]\nmodel = []",
            "sweep.toml: job 1: model is an empty list: give it a value or leave it out",
        ),
        (
            "[[job]]\nmodel = 'a'\nset = { peak_lr = [[1]] }",
            "sweep.toml: job 1: set.peak_lr must be a number, a text or a truth, got [1]",
        ),
        ("[[job]]\nmodel = 'a'\nset = 1", "sweep.toml: job 1: set must be a table, got 1"),
        (
            "[[job]]\nmodel = 'a'\npretrained = 1",
            "sweep.toml: job 1: pretrained must be true or false, got 1",
        ),
    ],
)
def test_a_mistake_is_one_line(text: str, message: str, tmp_path: Path) -> None:
    path = write(tmp_path, text)

    with pytest.raises(ZooError) as caught:
        read_sweep(path, Scale())

    assert str(caught.value).replace(f"{tmp_path}/", "") == message
    assert caught.value.exit_code == 2


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ZooError) as caught:
        read_sweep(tmp_path / "no.toml", Scale())

    assert str(caught.value) == (
        f"there is no file {tmp_path / 'no.toml'}: name comparison, second-study, ablation or a "
        ".toml file"
    )
