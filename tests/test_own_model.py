import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from few_images import QUIET, few_images, picture_folder

import export.cli
import export.use_cli
import profiling.cli
import training.cli
from export import export_model
from profiling import benchmark, run_subjects
from training import Runtime, train
from zoo.checkpoint import Checkpoint
from zoo.data import Dataset, load_dataset
from zoo.errors import CheckpointError, ZooError
from zoo.models import create_model, model_spec

CPU = Runtime(device="cpu")
NETWORK = """
from pathlib import Path

import torch
from torch import nn

Path(__file__).with_name("imported").touch()

CONSTANT = 3


def tiny(num_classes, image_size, width=8):
    body = nn.Sequential(nn.Conv2d(3, width, 3, 4, 1), nn.BatchNorm2d(width), nn.ReLU())
    size = (image_size + 3) // 4
    head = nn.Linear(width * size**2, num_classes)
    return nn.Sequential(body, nn.Flatten(), head)


def loose(num_classes, **options):
    assert not options
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, num_classes))


class Net(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.head = nn.Linear(3, num_classes)

    def forward(self, x):
        return self.head(x.mean((2, 3)))


def no_classes():
    return loose(10)


def greedy(num_classes, width):
    return loose(num_classes)


def no_module(num_classes):
    return "a network"


def failing(num_classes):
    raise KeyError("width\\nand more")


def ten(num_classes):
    return loose(10)


def pair(num_classes):
    class Pair(Net):
        def forward(self, x):
            return super().forward(x), x

    return Pair(num_classes)


def auxiliary(num_classes):
    class Auxiliary(Net):
        def forward(self, x):
            return (super().forward(x), x) if self.training else super().forward(x)

    return Auxiliary(num_classes)


def asleep(num_classes):
    class Asleep(Net):
        def forward(self, x):
            if self.training:
                raise RuntimeError("not in training")
            return super().forward(x)

    return Asleep(num_classes)


def still(num_classes):
    return loose(num_classes).requires_grad_(False)


def other_images(num_classes):
    return nn.Sequential(nn.Flatten(), nn.Linear(7, num_classes))
"""


@pytest.fixture(scope="module")
def data() -> Dataset:
    return load_dataset("cifar100-mini")


@pytest.fixture(scope="module")
def few(data: Dataset) -> Dataset:
    return few_images(data)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a package `mine` in it that nobody has imported."""
    folder = tmp_path / "project"
    (folder / "mine").mkdir(parents=True)
    (folder / "mine" / "__init__.py").write_text("")
    (folder / "mine" / "nets.py").write_text(NETWORK)
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    forget()
    yield folder
    forget()


def forget() -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "mine"]:
        del sys.modules[name]


def is_imported(project: Path) -> bool:
    return (project / "mine" / "imported").exists()


@pytest.mark.parametrize("name", ["mine.nets:tiny", "mine.nets:loose", "mine.nets:Net"])
@pytest.mark.parametrize("image_size", [32, 50])
def test_a_function_or_a_class_of_the_current_folder_is_a_model(
    project: Path, name: str, image_size: int
) -> None:
    network = create_model(name, num_classes=7, image_size=image_size)

    assert network.training
    assert network(torch.zeros(3, 3, image_size, image_size)).shape == (3, 7)


def test_options_go_to_the_function(project: Path) -> None:
    network = create_model("mine.nets:tiny", width=5)

    assert network[2].in_features == 5 * 8 * 8
    with pytest.raises(ZooError, match="model 'mine.nets:tiny' has no option 'depth'"):
        create_model("mine.nets:tiny", depth=5)


def test_the_trial_draws_no_random_numbers(project: Path) -> None:
    torch.manual_seed(0)
    create_model("mine.nets:Net", num_classes=5)
    after = torch.rand(1)
    torch.manual_seed(0)
    sys.modules["mine.nets"].Net(5)

    assert torch.equal(torch.rand(1), after)


def test_nothing_is_known_before_it_is_built(project: Path) -> None:
    with pytest.raises(ZooError, match="'mine.nets:tiny' names a network of your own"):
        model_spec("mine.nets:tiny")

    assert not is_imported(project)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("mine.nets:", "'mine.nets:' names no network of your own: write package.module:function"),
        ("../x:tiny", "'../x:tiny' names no network of your own"),
        ("a-b:tiny", "'a-b:tiny' names no network of your own"),
        ("yours:tiny", "there is no module 'yours' in .*project, on PYTHONPATH or installed"),
        ("mine.other:tiny", "there is no module 'mine.other' in "),
        ("mine.nets.more:tiny", "there is no module 'mine.nets.more' in "),
        ("mine.nets:tinny", "nets.py has no function 'tinny': did you mean tiny?"),
        ("mine.nets:CONSTANT", "nets.py has no function 'CONSTANT'"),
        ("mine.nets:no_classes", r"no_classes takes no num_classes: write it as function\(\*, num"),
        ("mine.nets:greedy", "greedy needs 'width' too, which nobody passes: write it as "),
        ("mine.nets:no_module", "no_module returned a str, expected a torch.nn.Module"),
        ("mine.nets:failing", "failing failed: KeyError: 'width"),
        (
            "mine.nets:ten",
            r"logits of shape \(2, 10\) for 2 images of 7 classes, expected \(2, 7\)",
        ),
        ("mine.nets:pair", r"pair gives a tuple, expected logits of shape \(2, 7\)"),
        ("mine.nets:other_images", r"does not run on images of shape \(2, 3, 32, 32\): Runtime"),
        ("mine.broken:tiny", "'mine.broken' cannot be imported: ZeroDivisionError: division by z"),
        ("mine.poor:tiny", "'mine.poor' cannot be imported: ModuleNotFoundError: No module named"),
        ("mine.wrong:tiny", "'mine.wrong' cannot be imported: SyntaxError: "),
        ("mine.exits:tiny", "'mine.exits' cannot be imported: SystemExit: go away"),
    ],
)
def test_what_does_not_work_is_one_line(project: Path, name: str, message: str) -> None:
    contents = {
        "broken": "1 / 0",
        "poor": "import a_package_that_nobody_has",
        "wrong": "def tiny(:",
        "exits": "import sys\nsys.exit('go away')",
    }
    for module, text in contents.items():
        (project / "mine" / f"{module}.py").write_text(text)

    with pytest.raises(ZooError, match=message) as caught:
        create_model(name, num_classes=7)

    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("auxiliary", r"auxiliary in training gives a tuple, expected logits of shape \(2, 100\)"),
        ("asleep", r"asleep in training does not run on .*: RuntimeError: not in training"),
        ("still", "no parameter of this network takes a gradient: there is nothing to train"),
    ],
)
def test_what_does_not_work_in_training_is_one_line(
    project: Path, few: Dataset, name: str, message: str
) -> None:
    assert create_model(f"mine.nets:{name}", num_classes=100) is not None

    with pytest.raises(ZooError, match=message) as caught:
        train(f"mine.nets:{name}", QUIET, CPU, few)

    assert "\n" not in str(caught.value)
    assert not list(project.glob("runs/*"))


# A run of one


def trained(project: Path, few: Dataset) -> Checkpoint:
    """A run whose module nobody has imported since."""
    done = train("mine.nets:tiny", QUIET, CPU, few, image_size=40)
    forget()
    (project / "mine" / "imported").unlink()
    return Checkpoint.open(done.path)


def test_a_run_keeps_the_name_as_it_was_given(project: Path, few: Dataset) -> None:
    run = trained(project, few)

    assert run.path == Path("runs/mine.nets-tiny-s0")
    assert run.meta.model == "mine.nets:tiny"
    images = run.meta.input_preprocessing.to_batch(few.test.images)
    assert images.shape[2:] == (40, 40)
    assert run.model(allow="mine.nets:tiny")(images).shape == (64, 100)


def test_no_file_makes_us_import_a_module(project: Path, few: Dataset) -> None:
    run = trained(project, few)
    refusal = r"imports that module: if you trust it, pass --model mine.nets:tiny"

    with pytest.raises(CheckpointError, match=refusal):
        run.model()
    with pytest.raises(CheckpointError, match=refusal):
        export_model(run, data=few)
    with pytest.raises(CheckpointError, match=refusal):
        run_subjects(run.path)
    with pytest.raises(CheckpointError, match="holds mine.nets:tiny, not mine.nets:loose: pass"):
        run.model(allow="mine.nets:loose")

    assert not is_imported(project)


@pytest.mark.parametrize(
    ("main", "argv"),
    [
        (export.cli.main, ["RUN"]),
        (export.use_cli.main_eval, ["RUN"]),
        (export.cli.main, ["RUN", "--model", "mine.nets:loose"]),
        (training.cli.main, ["--resume", "RUN"]),
        (profiling.cli.main, ["RUN"]),
    ],
)
def test_commands_ask_for_the_name(
    project: Path,
    few: Dataset,
    main: object,
    argv: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = trained(project, few)

    code = main([str(run.path) if word == "RUN" else word for word in argv])

    err = capsys.readouterr().err
    assert code == 2
    assert err.count("\n") == 1
    assert "pass --model mine.nets:tiny" in err
    assert not is_imported(project)


def test_a_run_of_the_zoo_does_not_take_another_name(
    project: Path, few: Dataset, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train("resnet_20", QUIET, CPU, few)

    assert export.cli.main([str(run.path), "--model", "mine.nets:tiny"]) == 2
    assert "holds resnet_20, not mine.nets:tiny: pass --model resnet_20" in capsys.readouterr().err
    assert not is_imported(project)


def test_a_worker_is_told_whom_to_trust(project: Path, few: Dataset) -> None:
    run = trained(project, few)
    subjects = run_subjects(run.path, allow="mine.nets:tiny")
    eager = [subject for subject in subjects if subject.backend == "eager"]

    (record,) = benchmark(eager, batches=(2,), budget_s=0.2, threads=1, data=few)

    assert (record.status, record.reason) == ("ok", None)
    assert (record.image_shape, record.input) == ((3, 40, 40), "test images")


def test_the_whole_chain_with_commands(
    project: Path,
    data: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    dataset = picture_folder(data, tmp_path / "pictures")
    options = ("--recipe", "smoke", "--epochs", "1", "--batch-size", "10", "--device", "cpu")
    own = ("--model", "mine.nets:tiny")

    codes = [
        training.cli.main([*own, "--dataset", dataset, *options]),
        export.cli.main(list(own)),
        export.use_cli.main_eval([*own, "--json"]),
    ]
    out = capsys.readouterr().out
    backend = ("--backend", "eager,onnx", "--batch", "2", "--budget", "0.2")
    codes.append(profiling.cli.main(["runs/mine.nets-tiny-s0", *own, *backend]))

    assert codes == [0] * 4, capsys.readouterr().err
    run = Checkpoint.open("runs/mine.nets-tiny-s0")
    manifest = json.loads((run.path / "artifacts" / "onnx-fp32.json").read_text())
    scores = json.loads(out[out.index("{") :])
    assert scores["top1"] == run.meta.test_top1 == manifest["accuracy"]["top1"]
    assert scores["model"] == "mine.nets:tiny"


def test_the_installed_command_finds_the_current_folder(project: Path, data: Dataset) -> None:
    """A console script does not have the current folder on its path."""
    dataset = picture_folder(data, project / "pictures")
    code = "import sys; import training.cli; sys.exit(training.cli.main(sys.argv[1:]))"
    options = ("--recipe", "smoke", "--epochs", "1", "--batch-size", "10", "--device", "cpu")
    installed = str(Path(training.cli.__file__).parents[1])
    environment = os.environ | {"PYTHONSAFEPATH": "1", "PYTHONPATH": installed}

    answer = subprocess.run(
        [sys.executable, "-c", code, "mine.nets:Net", "--dataset", dataset, *options],
        capture_output=True,
        text=True,
        env=environment,
    )

    assert answer.returncode == 0, answer.stderr
    assert answer.stdout == "runs/mine.nets-Net-s0\n"


def test_two_names_are_one_too_many(capsys: pytest.CaptureFixture[str]) -> None:
    assert training.cli.main(["resnet_20", "--model", "mine.nets:tiny"]) == 2
    assert capsys.readouterr().err == (
        "zoo-train: two models given, resnet_20 and mine.nets:tiny: leave one out\n"
    )
