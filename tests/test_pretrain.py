"""Pre-training without labels: its losses, its runs, its command."""

import copy
import json
import re
import sys
import types
from collections import OrderedDict
from dataclasses import asdict, replace
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from few_images import picture_folder
from small_pretraining import FOLDER, MISSING, MODEL, needs_lightly, settings
from small_runs import few_of_each
from torch import Tensor, nn

from training import Recipe, Runtime, train
from training.backbone import Backbone
from training.philox import Numbers, make_key
from training.pretrain import pretrain
from training.pretrain_cli import build_parser, main, make_settings
from training.pretraining import METHODS, pretraining_for
from zoo.checkpoint import Checkpoint
from zoo.data import Dataset, Split, load_dataset, validation_split
from zoo.errors import MissingPackageError, ZooError
from zoo.models import create_model
from zoo.own import load_function


@pytest.fixture(scope="module")
def few() -> Dataset:
    return few_of_each()


def backbone() -> Backbone:
    torch.manual_seed(0)
    return Backbone(load_function(MODEL)(num_classes=5), name=MODEL, image_size=32)


def numbers(batch: int) -> Numbers:
    key = make_key(0, torch.device("cpu"))
    return Numbers(key=key, epoch=torch.tensor(1), place=torch.arange(batch))


def two_views(batch: int = 64) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    first, second = torch.randn(2, batch, 3, 32, 32, generator=generator)
    return first, second


# The backbone


def test_a_backbone_gives_what_the_classifier_is_given() -> None:
    network = create_model("resnet_20").eval()
    images = torch.randn(2, 3, 32, 32)
    given: list[Tensor] = []
    network.head.register_forward_pre_hook(lambda module, inputs: given.append(inputs[0]))
    with torch.no_grad():
        network(images)
    names = [key for key in network.state_dict() if not key.startswith("head.")]

    made = Backbone(network, name="resnet_20", image_size=32)

    with torch.no_grad():
        assert torch.equal(made(images), given[0])
    assert made.width == 64
    assert list(made.body.state_dict()) == names


class Maps(nn.Module):
    """A network whose classifier is a convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, stride=2)
        self.head = nn.Conv2d(4, 7, 1)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.stem(images))


def test_maps_are_averaged_over_their_places() -> None:
    network, images = Maps(), torch.randn(2, 3, 32, 32)

    made = Backbone(network, name="maps", image_size=32)

    torch.testing.assert_close(made(images), network.stem(images).mean(dim=(2, 3)))
    assert made.width == 4


def test_a_network_without_a_known_classifier_is_refused() -> None:
    with pytest.raises(ZooError) as caught:
        Backbone(nn.Conv2d(3, 4, 3), name="my.nets:plain", image_size=32)

    assert str(caught.value) == (
        "pre-training needs to know the classifier of my.nets:plain, and it has neither a module "
        "`head` with parameters nor a method get_classifier(): name its last layer `head`"
    )


class Asking(Maps):
    """One that asks its classifier for more than an answer."""

    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).view(-1, self.head.out_channels)


def test_a_network_that_needs_its_classifier_is_refused() -> None:
    with pytest.raises(ZooError) as caught:
        Backbone(Asking(), name="my.nets:asking", image_size=32)

    assert str(caught.value) == (
        "my.nets:asking does not run without its classifier ('Identity' object has no attribute "
        "'out_channels'): use it in forward as the last module that is called, and in no other way"
    )


# The methods


@needs_lightly
def test_simclr_tells_a_view_from_all_others() -> None:
    from training.methods import make_method

    method = make_method(settings("simclr", temperature="0.3"), backbone())
    first, second = two_views(8)

    loss = method.loss(first, second, numbers(8))

    answers = F.normalize(method.learns(torch.cat((first, second))), dim=1)
    similarity = (answers @ answers.T / 0.3).masked_fill(torch.eye(16).bool(), -torch.inf)
    other_view = torch.arange(16).roll(8)
    assert loss.item() == pytest.approx(F.cross_entropy(similarity, other_view).item(), rel=1e-5)


@needs_lightly
def test_moco_tells_a_view_from_its_queue() -> None:
    from training.methods import Moco

    method = Moco(settings("moco", temperature="0.3"), backbone())
    method.keys.eval()  # so that the groups of the keys do not matter
    first, second = two_views()
    queue = method.contrast.memory_bank.bank.clone()

    loss = method.loss(first, second, numbers(64))
    loss.backward()

    queries = F.normalize(method.learns(first), dim=1)
    with torch.no_grad():
        keys = F.normalize(method.keys(second), dim=1)
    told = torch.cat(((queries * keys).sum(1, keepdim=True), queries @ queue.T), dim=1) / 0.3
    expected = F.cross_entropy(told, torch.zeros(64, dtype=torch.int64))
    assert loss.item() == pytest.approx(expected.item(), rel=1e-4)
    torch.testing.assert_close(method.contrast.memory_bank.bank[:64], keys)
    assert all(p.grad is None for p in method.keys.parameters())


@needs_lightly
def test_the_keys_of_moco_have_batch_statistics_of_shuffled_groups() -> None:
    from training.methods import LEAST_GROUP, SHUFFLE, Moco

    batch = 2 * LEAST_GROUP
    method = Moco(settings("moco"), backbone())
    other = copy.deepcopy(method.keys)
    first, second = two_views(batch)

    method.loss(first, second, numbers(batch))

    order = numbers(batch).uniforms(SHUFFLE, 1).squeeze(1).argsort()
    keys = torch.empty(batch, 16)
    for rows in order.chunk(2):
        keys[rows] = F.normalize(other(second[rows]), dim=1).detach()
    torch.testing.assert_close(method.contrast.memory_bank.bank[:batch], keys)
    assert order.tolist() != sorted(order.tolist())


@needs_lightly
def test_byol_predicts_the_other_view_both_ways() -> None:
    from training.methods import Byol

    method = Byol(settings("byol"), backbone())
    first, second = two_views()

    loss = method.loss(first, second, numbers(64))
    loss.backward()

    pairs = [(first, second), (second, first)]
    cosines = [F.cosine_similarity(method.learns(a), method.rest(b)).mean() for a, b in pairs]
    assert loss.item() == pytest.approx(-torch.stack(cosines).mean().item(), rel=1e-5)
    assert all(p.grad is None for p in method.rest.parameters())
    assert all(p.grad is not None for p in method.learns.parameters())


@needs_lightly
@pytest.mark.parametrize(
    ("name", "done", "kept"), [("moco", 0.9, 0.99), ("byol", 0.0, 0.99), ("byol", 0.5, 0.995)]
)
def test_targets_follow_slowly(name: str, done: float, kept: float) -> None:
    from training.methods import Moco, make_method

    method = make_method(settings(name), backbone())
    pair = (
        (method.keys, method.learns) if isinstance(method, Moco) else (method.rest, method.online)
    )
    target, source = pair
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(1.0)
    before = [parameter.clone() for parameter in target.parameters()]

    method.follow(done)

    for old, new in zip(before, target.parameters(), strict=True):
        torch.testing.assert_close(new - old, torch.full_like(old, 1 - kept), rtol=1e-3, atol=1e-6)


# Whole runs


@pytest.fixture(scope="module")
def done(few: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    if find_spec("lightly") is None:
        pytest.skip(MISSING)
    runs = tmp_path_factory.mktemp("runs")
    return pretrain(MODEL, settings("simclr"), few, device="cpu", runs=runs)


def test_a_run_folder_holds_the_backbone(done: Checkpoint) -> None:
    assert done.path.name == f"pretrain-simclr-{FOLDER}"
    assert {file.name for file in done.path.iterdir()} == {
        *("meta.json", "metrics.jsonl", "weights.safetensors")
    }
    meta = Checkpoint.open(done.path).meta
    assert meta == done.meta
    assert (meta.pretraining, meta.recipe_name, meta.selection) == ("simclr", "simclr", "last")
    assert (meta.epoch, meta.epochs_done, meta.test_top1) == (2, 2, None)
    assert meta.finished_at is not None
    assert meta.recipe == asdict(settings("simclr", precision=meta.recipe["precision"]))
    whole = load_function(MODEL)(num_classes=100).state_dict()
    assert done.state_dict().keys() == {key for key in whole if not key.startswith("head.")}
    lines = [json.loads(line) for line in (done.path / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]
    assert lines[1]["loss"] < lines[0]["loss"]
    assert 0 <= lines[1]["knn_top1"] <= 1
    assert lines[0]["learning_rate"] > lines[1]["learning_rate"] > 0


def test_the_loss_sees_neither_labels_nor_test_images(
    done: Checkpoint, few: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = validation_split(few.train)
    monkeypatch.setattr("training.pretrainer.validation_split", lambda train: rows)
    labels = np.random.default_rng(0).integers(0, 100, len(few.train.fine))
    empty = Split(images=few.test.images[:0], fine=few.test.fine[:0])
    other = replace(few, train=replace(few.train, fine=labels), test=empty)

    again = pretrain(MODEL, settings("simclr"), other, device="cpu", runs=tmp_path)

    assert again.meta.weights_sha256 == done.meta.weights_sha256


@needs_lightly
@pytest.mark.parametrize("method", ["moco", "byol"])
def test_the_other_methods_learn_too(method: str, few: Dataset, tmp_path: Path) -> None:
    torch.manual_seed(0)
    start = load_function(MODEL)(num_classes=100).state_dict()

    run = pretrain(MODEL, settings(method, epochs="1"), few, device="cpu", runs=tmp_path)

    weights = run.state_dict()
    assert run.path.name == f"pretrain-{method}-{FOLDER}"
    assert all(tensor.isfinite().all() for tensor in weights.values())
    assert not torch.equal(weights["stem.0.weight"], start["stem.0.weight"])


def test_the_weights_are_probed_by_training(done: Checkpoint, few: Dataset, tmp_path: Path) -> None:
    probe = Recipe(
        name="probe", epochs=1, batch_size=50, freeze_backbone=True, augment="none", erase_p=0.0
    )

    run = train(MODEL, probe, Runtime(device="cpu"), few, runs=tmp_path, init_from=done.path)

    weights = run.state_dict()
    assert all(torch.equal(weights[key], tensor) for key, tensor in done.state_dict().items())
    assert run.meta.initial_weights == f"simclr sha256:{done.meta.weights_sha256}"


@needs_lightly
@pytest.mark.parametrize("name", ["masked", "tied"])
def test_a_mask_and_a_weight_of_two_layers_are_no_trouble(
    name: str, few: Dataset, tmp_path: Path
) -> None:
    one = settings("simclr", epochs="1", epoch_steps="1")

    done = pretrain(f"tiny_network:{name}", one, few, device="cpu", runs=tmp_path)

    assert done.meta.epochs_done == 1


@needs_lightly
def test_a_format_that_the_cpu_has_no_units_for_is_told(
    few: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.precision.has_bf16_units", lambda flags: False)
    one, notes = settings("simclr", epochs="1", epoch_steps="1", precision="bf16"), list[str]()

    pretrain(MODEL, one, few, device="cpu", runs=tmp_path, on_note=notes.append)

    assert [line.partition(" and ")[0] for line in notes] == ["this CPU has no units for bf16"]


class Evaluated(nn.Flatten):
    """One that cannot be trained."""

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            raise RuntimeError("only evaluation")
        return super().forward(x)


@needs_lightly
def test_a_network_that_works_in_evaluation_alone_is_refused(
    few: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = types.ModuleType("evaluated")
    module.network = lambda num_classes: nn.Sequential(
        OrderedDict(flat=Evaluated(), head=nn.Linear(3072, num_classes))
    )
    monkeypatch.setitem(sys.modules, "evaluated", module)

    with pytest.raises(ZooError, match="evaluated:network in training does not run on images"):
        pretrain("evaluated:network", settings("simclr"), few, device="cpu", runs=tmp_path)

    assert list(tmp_path.iterdir()) == []


@needs_lightly
def test_a_batch_larger_than_the_data_is_refused(few: Dataset, tmp_path: Path) -> None:
    with pytest.raises(ZooError) as caught:
        pretrain(MODEL, settings("byol", batch_size="500"), few, device="cpu", runs=tmp_path)

    assert str(caught.value) == (
        "batch size 500 exceeds the 300 training images of cifar100-mini: pass a smaller "
        "--batch-size"
    )


# The command


def test_without_lightly_the_extra_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "lightly", None)
    absent = ("--dataset", "cifar10", "--data-dir", str(tmp_path))

    code = main(["resnet_20", "--method", "byol", *absent, "--runs", str(tmp_path / "runs")])

    assert code == 2
    assert capsys.readouterr().err == (
        f"zoo-pretrain: {MissingPackageError('lightly', extra='ssl', needed_by='zoo-pretrain')}\n"
    )
    assert not (tmp_path / "runs").exists()


@needs_lightly
def test_the_command_prints_the_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = picture_folder(load_dataset("cifar100-mini"), tmp_path / "pictures")
    small = ("--batch-size", "10", "--set", "hidden=8", "--device", "cpu", "--epochs", "1")

    code = main(
        [MODEL, "--method", "simclr", "--dataset", dataset, *small, "--runs", str(tmp_path)]
    )

    out, err = capsys.readouterr()
    assert code == 0, err
    assert out == f"{tmp_path}/pretrain-simclr-{FOLDER}\n"
    shown = err.splitlines()
    assert shown[0] == f"{MODEL} on {dataset} by simclr, 1 epochs, batch 10, seed 0"
    line = r"epoch 1/1  \d+ img/s  loss \d+\.\d{3}  kNN \d+\.\d\d%  0:00 left"
    assert re.fullmatch(line, shown[-1])


def test_options_change_the_settings_of_the_method() -> None:
    parsed = build_parser().parse_args(
        ["resnet_20", "--method", "moco", "--epochs", "40", "--set", "queue=100"]
    )

    found = make_settings(parsed)

    assert found == replace(pretraining_for("moco"), epochs=40, warmup_epochs=2.0, queue=100)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("queue", "--set expects FIELD=VALUE, such as --set peak_lr=0.05; got 'queue'"),
        ("que=1", "a recipe has no field 'que': did you mean queue?"),
        ("queue=0", "recipe 'byol': queue must be 1 or more, got 0"),
        ("epoch_steps=0", "recipe 'byol': epoch_steps must be none or 1 or more, got 0"),
        ("jitter_p=2", "recipe 'byol': jitter_p must be in [0, 1], got 2.0"),
    ],
)
def test_a_setting_that_is_none_is_refused(text: str, message: str) -> None:
    parsed = build_parser().parse_args(["resnet_20", "--method", "byol", "--set", text])

    with pytest.raises(ZooError) as caught:
        make_settings(parsed)

    assert str(caught.value) == message


@pytest.mark.parametrize("option", ["--epochs", "--batch-size"])
def test_a_field_that_is_given_twice_is_refused(option: str) -> None:
    text = option[2:].replace("-", "_") + "=40"
    parsed = build_parser().parse_args(
        ["resnet_20", "--method", "byol", option, "30", "--set", text]
    )

    with pytest.raises(ZooError, match=f"--set {text} give the same field: leave one out"):
        make_settings(parsed)


def test_each_method_has_its_settings() -> None:
    assert [pretraining_for(name).name for name in METHODS] == list(METHODS)
    with pytest.raises(ZooError, match=r"^no method named 'simclrr': did you mean simclr\?"):
        pretraining_for("simclrr")


@needs_lightly
def test_a_run_that_is_not_there_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    gone = str(tmp_path / "gone")

    code = main(["resnet_20", "--method", "byol", "--dataset", "cifar100-mini", "--resume", gone])

    assert code == 2
    assert capsys.readouterr() == (
        "",
        f"zoo-pretrain: there is no run {gone}: resume a folder that zoo-pretrain began, or start "
        "a new run without --resume\n",
    )
