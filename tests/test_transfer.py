import copy
import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from accelerate import Accelerator
from few_images import QUIET, few_images, picture_folder
from sample_run import sample_run
from small_runs import Signal
from torch import Tensor

import training.cli
from export import export_model
from export.opening import open_artifact
from training import Recipe, Runtime, named_recipe, train
from training.loop import Trainer
from training.optim import parameter_groups
from training.state import stored_recipe
from zoo.adopt import classifiers
from zoo.checkpoint import Checkpoint
from zoo.data import Dataset, load_dataset
from zoo.errors import CheckpointError, MachineError, ZooError
from zoo.evaluate import evaluate
from zoo.models import create_model
from zoo.neighbours import neighbour
from zoo.preprocess import Preprocessing
from zoo.pretrained import store_weights
from zoo.session import EagerSession

CPU = Runtime(device="cpu")
MODEL, SIZE = "timm:test_convnext", 96  # an eighth of a million parameters
FROZEN = replace(QUIET, freeze_backbone=True)


@pytest.fixture(scope="module")
def data() -> Dataset:
    return load_dataset("cifar100-mini")


@pytest.fixture(scope="module")
def few(data: Dataset) -> Dataset:
    return few_images(data)


@pytest.fixture(scope="module")
def imagenet() -> dict[str, Tensor]:
    """What stands in for trained weights: a thousand classes, by chance."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = timm.create_model("test_convnext", num_classes=1000)
        for tensor in network.state_dict().values():
            tensor.add_(0.01 * torch.randn_like(tensor))
    return network.state_dict()


@pytest.fixture(scope="module")
def file(imagenet: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "imagenet.safetensors"
    safetensors.torch.save_file(imagenet, path)
    return path


def is_head(key: str) -> bool:
    return key.startswith("head.fc.")


# Weights from a file


def test_all_but_the_classifier_comes_from_the_file(
    imagenet: dict[str, Tensor], file: Path, few: Dataset, tmp_path: Path
) -> None:
    done = train(MODEL, FROZEN, CPU, few, runs=tmp_path, image_size=SIZE, pretrained_file=file)

    weights = done.state_dict()
    assert done.meta.initial_weights == f"sha256:{hashlib.sha256(file.read_bytes()).hexdigest()}"
    for key, tensor in imagenet.items():
        if is_head(key):
            assert len(weights[key]) == 100
        else:
            assert torch.equal(weights[key], tensor), key


def test_a_classifier_of_as_many_classes_is_taken_over(file: Path, few: Dataset) -> None:
    from training.start import Wanted, begin

    network = timm.create_model("test_convnext", num_classes=100)
    with torch.no_grad():
        network.head.fc.bias.fill_(7.0)
    path = file.with_name("hundred.safetensors")
    safetensors.torch.save_file(network.state_dict(), path)

    start = begin(MODEL, few, Wanted(image_size=SIZE, file=path), QUIET)

    assert torch.equal(start.network.head.fc.bias, torch.full((100,), 7.0))


def test_the_run_is_fed_as_the_weights_expect(file: Path, few: Dataset, tmp_path: Path) -> None:
    done = train(MODEL, FROZEN, CPU, few, runs=tmp_path, image_size=SIZE, pretrained_file=file)

    config = timm.models.get_pretrained_cfg("test_convnext")
    preprocessing = done.meta.preprocessing
    assert preprocessing == Preprocessing(
        SIZE, config.mean, config.std, config.interpolation, config.crop_pct
    )
    assert preprocessing != Preprocessing.of(few, image_size=SIZE)
    found = evaluate(EagerSession(done.model()), few.test.images, few.test.fine, preprocessing)
    assert found.top1 == done.meta.test_top1


def test_small_images_keep_the_statistics_of_their_data_set(few: Dataset, tmp_path: Path) -> None:
    path = tmp_path / "small.safetensors"
    safetensors.torch.save_file(create_model(MODEL, num_classes=10).state_dict(), path)

    done = train(MODEL, QUIET, CPU, few, runs=tmp_path, pretrained_file=path)

    assert done.meta.preprocessing == Preprocessing.of(few)


def test_the_weights_of_a_run_start_another(few: Dataset, tmp_path: Path) -> None:
    first = train("resnet_20", QUIET, CPU, few, runs=tmp_path)

    second = train(
        "resnet_20",
        replace(QUIET, peak_lr=1e-30, weight_decay=0.0),
        CPU,
        few,
        runs=tmp_path,
        pretrained_file=first.path / "weights.safetensors",
    )

    assert torch.equal(second.state_dict()["stem.0.weight"], first.state_dict()["stem.0.weight"])
    assert second.meta.initial_weights == f"sha256:{first.meta.weights_sha256}"


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".bin", ".ckpt", ".pth.tar"])
def test_a_pickle_is_not_even_opened(
    suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f"weights{suffix}"
    path.write_bytes(b"cos\nsystem\n")

    code = training.cli.main([MODEL, "--pretrained-file", str(path), "--runs", str(tmp_path)])

    assert code == 2
    assert capsys.readouterr().err == (
        f"zoo-train: {path} is a pickle by its name, and reading a pickle runs code that it holds: "
        "pass weights that were saved as .safetensors\n"
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"there is no file .*w.safetensors: pass --pretrained-file FILE.safetensors"),
        (b"\x80\x04cos\nsystem\n.", r"w.safetensors is no safetensors file, or it is damaged \("),
        (b"", r"w.safetensors is no safetensors file, or it is damaged \("),
    ],
)
def test_other_files_are_refused(
    content: bytes | None, message: str, few: Dataset, tmp_path: Path
) -> None:
    path = tmp_path / "w.safetensors"
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(ZooError, match=message):
        train(MODEL, QUIET, CPU, few, runs=tmp_path / "runs", pretrained_file=path)

    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", r"it has no stem.0.weight \(1 tensors are missing, 0 of another shape, 0 left"),
        ("shape", r"it has another shape for stem.0.weight, \(1,\) instead of \(24, 3, 4, 4\) \(0"),
        ("extra", r"it also holds stem.9.weight \(0 tensors are missing, 0 of another shape, 1 "),
    ],
)
def test_the_first_tensor_that_does_not_fit_is_named(
    change: str,
    message: str,
    imagenet: dict[str, Tensor],
    few: Dataset,
    tmp_path: Path,
) -> None:
    tensors = dict(imagenet)
    if change == "missing":
        del tensors["stem.0.weight"]
    else:
        tensors["stem.0.weight" if change == "shape" else "stem.9.weight"] = torch.zeros(1)
    path = tmp_path / "w.safetensors"
    safetensors.torch.save_file(tensors, path)

    with pytest.raises(ZooError, match=f"w.safetensors does not fit {MODEL}: {message}"):
        train(MODEL, QUIET, CPU, few, runs=tmp_path, image_size=SIZE, pretrained_file=path)


def test_a_counter_of_batch_norms_may_be_missing(few: Dataset, tmp_path: Path) -> None:
    from training.start import Wanted, begin

    tensors = create_model("resnet_20").state_dict()
    path = tmp_path / "old.safetensors"
    kept = {key: value for key, value in tensors.items() if not key.endswith("_tracked")}
    safetensors.torch.save_file(kept, path)

    start = begin("resnet_20", few, Wanted(file=path), QUIET)

    assert torch.equal(
        start.network.stages[0][0].first[0].weight, kept["stages.0.0.first.0.weight"]
    )


# Weights from the Hub and from the package


def test_the_weights_of_imagenet_need_the_size_that_timm_knows(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = training.cli.main(["timm:resnet18", "--pretrained", "--runs", str(tmp_path)])

    assert code == 2
    assert capsys.readouterr().err == (
        "zoo-train: the weights of timm:resnet18 belong to its own stem, which images of 32 pixels "
        "do not meet: pass --image-size 224\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_without_a_network_the_way_out_is_named(
    few: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))

    with pytest.raises(MachineError) as caught:
        train("timm:test_resnet", QUIET, CPU, few, runs=tmp_path, image_size=160, pretrained=True)

    message = str(caught.value)
    assert message.startswith("the weights of timm:test_resnet cannot be fetched from the Hub (")
    assert message.endswith(
        "connect to the network, or pass --pretrained-file FILE.safetensors with model.safetensors "
        "of timm/test_resnet.r160_in1k"
    )
    assert "\n" not in message
    assert list(tmp_path.iterdir()) == []


def test_the_cache_of_the_hub_is_enough(
    imagenet: dict[str, Tensor],
    file: Path,
    few: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import huggingface_hub.constants

    repo, commit = str(neighbour(MODEL).config.hf_hub_id), "0123456789abcdef" * 2 + "01234567"
    folder = tmp_path / "cache" / f"models--{repo.replace('/', '--')}"
    (folder / "snapshots" / commit).mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(commit)
    (folder / "snapshots" / commit / "model.safetensors").write_bytes(file.read_bytes())
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))

    done = train(MODEL, FROZEN, CPU, few, runs=tmp_path, image_size=SIZE, pretrained=True)
    alone = create_model(MODEL, image_size=SIZE, pretrained=True)

    assert done.meta.initial_weights == f"hub:{repo}@{commit}"
    assert torch.equal(done.state_dict()["stem.0.weight"], imagenet["stem.0.weight"])
    assert torch.equal(alone.stem[0].weight, imagenet["stem.0.weight"])


def test_a_network_without_weights_on_the_hub_is_refused() -> None:
    message = "timm names no weights of its own format for timm:resnet50t: choose another tag, as"

    with pytest.raises(ZooError, match=message):
        create_model("timm:resnet50t", image_size=224, pretrained=True)


def test_the_weights_are_downloaded_from_the_hub(
    imagenet: dict[str, Tensor], file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import hub_host
    from huggingface_hub import constants

    from zoo.adopt import from_hub

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_IMPLICIT_TOKEN", True)
    monkeypatch.setattr(hub_host, "REPO", str(neighbour(MODEL).config.hf_hub_id))

    with hub_host.serving() as host:
        template = f"{host.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "ENDPOINT", host.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        host.files = {"model.safetensors": file.read_bytes()}
        found = from_hub(neighbour(MODEL), image_size=SIZE)

    assert found.source == f"hub:{hub_host.REPO}@{hub_host.COMMIT}"
    assert found.tensors.keys() == imagenet.keys()

    again = from_hub(neighbour(MODEL), image_size=SIZE)  # the host is gone, the cache is not
    assert again.source == found.source


def test_an_own_network_has_no_published_weights(few: Dataset) -> None:
    with pytest.raises(ZooError, match="nobody offers weights of my.nets:tiny.*--pretrained-file"):
        train("my.nets:tiny", QUIET, CPU, few, pretrained=True)


def test_our_own_weights_are_of_the_package(
    data: Dataset, few: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = sample_run(tmp_path / "run", data)
    store_weights(run.path, tmp_path / "weights")
    monkeypatch.setenv("ZOO_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setattr("zoo.pretrained.available", tuple)

    done = train("resnet_20", FROZEN, CPU, few, runs=tmp_path, pretrained=True)

    assert done.meta.initial_weights == f"zoo:{run.meta.weights_sha256}"
    assert torch.equal(done.state_dict()["stem.0.weight"], run.state_dict()["stem.0.weight"])
    assert done.meta.preprocessing == Preprocessing.of(run.meta.dataset)


# A frozen backbone


def trainer(recipe: Recipe, data: Dataset, model: str = "resnet_20", **runtime: bool) -> Trainer:
    torch.manual_seed(0)
    network = create_model(model, num_classes=data.num_classes)
    on_cpu = Runtime(device="cpu", **runtime)
    return Trainer(network, recipe, on_cpu, data, Accelerator(cpu=True), seed=0)


@pytest.mark.parametrize("model", ["resnet_20", "vit_tiny", "timm:test_resnet", "timm:test_vit"])
@pytest.mark.parametrize("ema_decay", [0.0, 0.9])
def test_only_the_classifier_changes(model: str, ema_decay: float, few: Dataset) -> None:
    run = trainer(replace(FROZEN, ema_decay=ema_decay, weight_decay=0.1), few, model)
    before = copy.deepcopy(run.plain.state_dict())
    heads = tuple(f"{name}." for name in classifiers(run.plain))

    run.predicted()
    for epoch in (1, 2):
        list(run.run_steps(epoch))

    for state in (run.plain.state_dict(), run.selected.state_dict()):
        for key, tensor in state.items():
            assert torch.equal(tensor, before[key]) is not key.startswith(heads), key
    trained = [p for group in run.stepper.optimizer.param_groups for p in group["params"]]
    assert sum(parameter.numel() for parameter in trained) == sum(
        before[key].numel() for key in before if key.startswith(heads)
    )


def test_batch_norms_of_the_backbone_compute_as_in_inference(few: Dataset) -> None:
    run = trainer(FROZEN, few)

    list(run.run_steps(1))

    assert run.plain.head.training
    assert not any(module.training for module in run.plain.stages.modules())


def test_every_classifier_is_found() -> None:
    names = {
        model: set(classifiers(create_model(model)))
        for model in ("resnet_20", "vit_tiny", "timm:test_convnext", "timm:densenet121")
    }
    distilled = create_model("timm:deit_tiny_distilled_patch16_224")

    assert names == {
        "resnet_20": {"head"},
        "vit_tiny": {"head"},
        "timm:test_convnext": {"head.fc"},
        "timm:densenet121": {"classifier"},
    }
    assert set(classifiers(distilled)) == {"head", "head_dist"}


def test_without_a_classifier_it_is_refused(few: Dataset) -> None:
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3072, 100))

    with pytest.raises(ZooError, match="freeze_backbone needs to know the classifier.*`head`, or"):
        Trainer(network, FROZEN, CPU, few, Accelerator(cpu=True), seed=0)


def test_nothing_is_left_out_of_the_optimiser_elsewhere() -> None:
    network = create_model("resnet_20")

    (group,) = parameter_groups(network, QUIET)

    assert len(group["params"]) == len(list(network.parameters()))


def test_compiled_training_freezes_too(few: Dataset) -> None:
    run, eager = trainer(FROZEN, few, compile=True), trainer(FROZEN, few)
    before = copy.deepcopy(run.plain.state_dict())

    losses = [next(one.run_steps(1))[0].item() for one in (run, eager)]

    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    changed = {
        k for k, tensor in run.plain.state_dict().items() if not torch.equal(tensor, before[k])
    }
    assert changed <= {"head.weight", "head.bias"}


def test_an_older_recipe_froze_nothing(tmp_path: Path) -> None:
    older = named_recipe("smoke").to_json()
    del older["freeze_backbone"]
    (tmp_path / "recipe.json").write_text(json.dumps(older))

    assert stored_recipe(tmp_path) == named_recipe("smoke")


def test_a_resume_needs_no_file(imagenet: dict[str, Tensor], few: Dataset, tmp_path: Path) -> None:
    file = tmp_path / "w.safetensors"
    safetensors.torch.save_file(imagenet, file)
    recipe = replace(FROZEN, epochs=2)
    options = {"image_size": SIZE, "pretrained_file": file}
    whole = train(MODEL, recipe, CPU, few, runs=tmp_path / "whole", **options)

    def interrupt(progress: object) -> None:
        if getattr(progress, "metrics", None):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(MODEL, recipe, CPU, few, runs=tmp_path, on_progress=interrupt, **options)
    file.unlink()
    path = tmp_path / "timm-test_convnext-s0"

    with pytest.raises(CheckpointError, match=r"another recipe \(freeze_backbone was True, is Fal"):
        train(MODEL, replace(recipe, freeze_backbone=False), CPU, few, resume=path)
    resumed = train(MODEL, recipe, CPU, few, resume=path)

    assert resumed.meta.weights_sha256 == whole.meta.weights_sha256
    assert resumed.meta.initial_weights == whole.meta.initial_weights
    assert resumed.meta.preprocessing == whole.meta.preprocessing


def test_a_run_from_random_weights_takes_none_later(
    file: Path, few: Dataset, tmp_path: Path
) -> None:
    recipe = replace(QUIET, epochs=2)
    with pytest.raises(KeyboardInterrupt):
        train("resnet_20", recipe, CPU, few, runs=tmp_path, on_progress=Signal(1))

    with pytest.raises(CheckpointError, match="this run began with random weights: resume without"):
        train("resnet_20", recipe, CPU, few, resume=tmp_path / "resnet_20-s0", pretrained_file=file)


# Through the whole chain


def test_transfer_from_the_file_to_the_exported_network(
    file: Path, data: Dataset, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    dataset = picture_folder(data, tmp_path / "pictures")

    code = training.cli.main(
        [
            *(MODEL, "--pretrained-file", str(file), "--image-size", str(SIZE)),
            *("--freeze-backbone", "--dataset", dataset, "--recipe", "smoke", "--epochs", "1"),
            *("--batch-size", "10", "--device", "cpu", "--runs", str(tmp_path)),
        ]
    )

    out, err = capsys.readouterr()
    assert code == 0, err
    assert f", seed 0, {SIZE}x{SIZE} pixels\n" in err
    run = Checkpoint.open(out.strip())
    assert run.meta.recipe["freeze_backbone"] is True
    pictures = load_dataset(dataset)
    artifact = export_model(run, data=pictures)
    images = run.meta.input_preprocessing.to_batch(pictures.test.images)
    with torch.inference_mode():
        expected = run.model()(images)
    logits = open_artifact(str(artifact.path), "cpu").run(images)
    torch.testing.assert_close(logits, expected, rtol=0, atol=artifact.parity.limit)
    assert artifact.input_preprocessing == run.meta.preprocessing
    assert artifact.accuracy.top1 == run.meta.test_top1


@pytest.mark.network
def test_the_hub_gives_the_weights_that_timm_would_load(tmp_path: Path) -> None:
    os.environ.setdefault("HF_HOME", str(tmp_path))

    ours = create_model("timm:test_resnet", num_classes=1000, image_size=160, pretrained=True)

    theirs = timm.create_model("test_resnet", pretrained=True)
    for key, tensor in theirs.state_dict().items():
        assert torch.equal(ours.state_dict()[key], tensor), key
