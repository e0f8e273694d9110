"""Trained weights: those of the package, of folders and of runs, and how they are stored."""

import hashlib
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from sample_run import sample_run
from torch import Tensor

from zoo.checkpoint import Checkpoint, DatasetInfo, RunMeta, save_run
from zoo.data import Dataset, load_dataset
from zoo.errors import CheckpointError, UnknownModelError, ZooError
from zoo.evaluate import Accuracy, evaluate
from zoo.models import create_model
from zoo.preprocess import Preprocessing
from zoo.pretrained import (
    MOST_BYTES,
    SHIPPED,
    SHIPPED_BYTES,
    Card,
    available,
    card,
    card_of,
    main,
    store_weights,
)
from zoo.session import EagerSession

ROOT = Path(__file__).parents[1]
COMMITTED = ROOT / "bench_results" / "runs" / "resnet_20-s0-3"
NAME = "ghost_resnet_20"  # comes without weights
FULL = os.environ.get("ZOO_DATA")


@pytest.fixture(autouse=True)
def no_other_place(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZOO_WEIGHTS", raising=False)


@pytest.fixture(scope="module")
def mini() -> Dataset:
    return load_dataset("cifar100-mini")


@pytest.fixture(scope="module")
def run(mini: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A complete run of NAME with an accuracy on held-out images."""
    sample = sample_run(tmp_path_factory.mktemp("runs") / "run", mini, model=NAME)
    return save_run(sample.path, replace(sample.meta, val_top1=0.5), sample.state_dict())


@pytest.fixture
def folder(run: Checkpoint, tmp_path: Path) -> Path:
    """A folder with the weights of that run."""
    return store_weights(run.path, tmp_path / "weights").parent


def with_facts(run: Checkpoint, path: Path, **facts: object) -> Path:
    """A copy of a run of which other facts are known."""
    return save_run(path, replace(run.meta, **facts), run.state_dict()).path


def edit_card(folder: Path, name: str = NAME, **changes: object) -> None:
    file = folder / f"{name}.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def replace_weights(folder: Path, content: bytes) -> None:
    """Put `content` in place of the weights, and let the card promise it."""
    (folder / f"{NAME}.safetensors").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    edit_card(folder, sha256=digest, size_bytes=len(content))


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


# ---- what comes with the package -------------------------------------------------------------


@pytest.mark.parametrize("name", available())
def test_shipped_weights_are_whole_small_and_fit(name: str) -> None:
    weights = SHIPPED / f"{name}.safetensors"

    model = create_model(name, pretrained=True)

    facts = card(name)
    assert model.training
    assert weights.stat().st_size <= SHIPPED_BYTES
    assert facts.params == sum(tensor.numel() for tensor in model.parameters())
    assert facts.finished_at is not None
    assert facts.test_top1 is not None
    assert facts.commit is not None
    assert "dirty" not in facts.commit


def test_every_file_in_the_package_belongs_to_weights() -> None:
    files = {file.name for file in SHIPPED.iterdir() if file.is_file()}

    pairs = {f"{name}{kind}" for name in available() for kind in (".json", ".safetensors")}
    assert files == {"__init__.py", "README.md"} | pairs
    assert "resnet_20" in available()


def test_the_shipped_resnet_20_is_that_of_the_committed_run() -> None:
    committed = Checkpoint.open(COMMITTED)

    assert_same(create_model("resnet_20", pretrained=True).state_dict(), committed.state_dict())
    assert card("resnet_20") == card_of(committed, "resnet_20")


def accuracy_of_resnet_20(data: Dataset) -> Accuracy:
    session = EagerSession(create_model("resnet_20", pretrained=True))
    preprocessing = card("resnet_20").input_preprocessing
    return evaluate(session, data.test.images, data.test.fine, preprocessing)


def test_accuracy_of_the_shipped_weights_on_the_embedded_images(mini: Dataset) -> None:
    # The embedded test images are 1,000 of the 10,000 of CIFAR-100: none was trained on. Another
    # machine rounds elsewhere, which turns an image or two.
    found = accuracy_of_resnet_20(mini)

    assert found.images == 1000
    assert found.top1 == pytest.approx(0.660, abs=0.002)
    assert found.top5 == pytest.approx(0.906, abs=0.002)


@pytest.mark.slow
@pytest.mark.skipif(not FULL, reason="needs the full CIFAR-100: set ZOO_DATA to its folder")
def test_accuracy_of_the_shipped_weights_on_all_images() -> None:
    found = accuracy_of_resnet_20(load_dataset("cifar100"))

    facts = card("resnet_20")
    assert found.images == facts.test_images
    assert found.top1 == pytest.approx(facts.test_top1, abs=0.001)
    assert found.top5 == pytest.approx(facts.test_top5, abs=0.001)


def test_cards_are_read_without_torch() -> None:
    code = (
        "import sys; from zoo import pretrained\n"
        "assert [pretrained.card(name).model for name in pretrained.available()]\n"
        "assert not {'torch', 'safetensors', 'huggingface_hub'} & set(sys.modules)"
    )

    result = subprocess.run((sys.executable, "-c", code), capture_output=True, check=False)

    assert result.returncode == 0, result.stderr.decode()


# ---- what is loaded --------------------------------------------------------------------------


def test_without_pretrained_a_model_is_fresh(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ZOO_WEIGHTS", str(folder))
    torch.manual_seed(0)
    expected = create_model(NAME).state_dict()
    torch.manual_seed(0)

    assert_same(create_model(NAME, pretrained=False).state_dict(), expected)


def test_with_other_classes_the_classifier_alone_is_fresh() -> None:
    torch.manual_seed(0)
    fresh = create_model("resnet_20", num_classes=7).state_dict()
    after = torch.rand(1)
    torch.manual_seed(0)

    found = create_model("resnet_20", num_classes=7, pretrained=True).state_dict()

    assert_same(torch.rand(1), after)  # the generator saw one model
    trained = create_model("resnet_20", pretrained=True).state_dict()
    head = {key for key in found if found[key].shape != trained[key].shape}
    assert len(head) == 2
    assert all(key.startswith("head") for key in head)
    assert_same(found, {key: (fresh if key in head else trained)[key] for key in found})


def test_another_image_size_where_no_tensor_depends_on_it() -> None:
    model = create_model("resnet_20", image_size=48, pretrained=True)

    assert_same(model.state_dict(), create_model("resnet_20", pretrained=True).state_dict())


def test_another_image_size_where_tensors_depend_on_it(mini: Dataset, tmp_path: Path) -> None:
    run = sample_run(tmp_path / "run", mini, model="mlp_mixer_nano")

    with pytest.raises(ZooError, match="are for images of 32 pixels .* differ in .* image_size=32"):
        create_model("mlp_mixer_nano", image_size=16, weights=run.path)


def test_weights_imply_pretrained_and_win_over_the_package(
    run: Checkpoint, mini: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = sample_run(tmp_path / "run", mini, model="resnet_20", seed=1)
    folder = store_weights(other.path, tmp_path / "weights").parent
    shipped = create_model("resnet_20", pretrained=True).state_dict()

    found = create_model("resnet_20", weights=folder).state_dict()

    assert_same(found, other.state_dict())
    monkeypatch.setenv("ZOO_WEIGHTS", str(folder))  # which does not
    assert_same(create_model("resnet_20", pretrained=True).state_dict(), shipped)


def test_the_variable_adds_to_the_package(
    run: Checkpoint, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ZOO_WEIGHTS", str(folder))

    assert_same(create_model(NAME, pretrained=True).state_dict(), run.state_dict())
    assert card(NAME) == card_of(run, NAME)
    assert NAME not in available()


@pytest.mark.parametrize("kind", [Path, str])
def test_a_run_is_a_place_for_its_own_model(
    run: Checkpoint, kind: Callable[[Path], Path | str]
) -> None:
    assert_same(create_model(NAME, weights=kind(run.path)).state_dict(), run.state_dict())
    with pytest.raises(ZooError, match=f"is a run of '{NAME}', not of 'resnet_20'"):
        create_model("resnet_20", weights=kind(run.path))


def test_a_run_without_weights(run: Checkpoint, tmp_path: Path) -> None:
    path = with_facts(run, tmp_path / "run")
    (path / "weights.safetensors").unlink()

    with pytest.raises(CheckpointError, match="no epoch of this run was completed"):
        create_model(NAME, weights=path)


def test_options_reach_the_builder() -> None:
    with pytest.raises(ZooError, match="has no option 'depth'"):
        create_model("resnet_20", pretrained=True, depth=3)


# ---- what there is not -----------------------------------------------------------------------


def test_a_model_without_weights_names_those_that_have() -> None:
    with pytest.raises(ZooError) as caught:
        create_model(NAME, pretrained=True)

    assert str(caught.value) == (
        f"there are no weights of {NAME!r} in the package, which has {', '.join(available())}: "
        "train the model with zoo-train, or name a folder or hub:OWNER/REPO@COMMIT with weights= "
        "or ZOO_WEIGHTS"
    )


def test_a_folder_without_weights_of_the_model(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()

    with pytest.raises(ZooError) as caught:
        create_model("resnet_32", weights=folder)
    with pytest.raises(ZooError, match=f"in {tmp_path / 'empty'}, which has none; the package has"):
        create_model("resnet_32", weights=tmp_path / "empty")

    assert str(caught.value) == (
        f"there are no weights of 'resnet_32' in {folder}, which has {NAME}; "
        f"the package has {', '.join(available())}"
    )


@pytest.mark.parametrize("place", ["nowhere", "somebody/weights", "resnet_20.safetensors"])
def test_a_place_that_is_no_folder(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    message = f"the weights '{place}' are no folder: name one, or a Hub repository as hub:OWNER/REP"

    with pytest.raises(ZooError, match=message):
        create_model(NAME, weights=place)
    monkeypatch.setenv("ZOO_WEIGHTS", place)
    with pytest.raises(ZooError, match=message):
        create_model(NAME, pretrained=True)


def test_an_unknown_model_is_named_first() -> None:
    with pytest.raises(UnknownModelError, match="no model named .resnet_21.: did you mean"):
        create_model("resnet_21", pretrained=True)


# ---- what is damaged -------------------------------------------------------------------------


def test_a_flipped_byte(folder: Path) -> None:
    file = folder / f"{NAME}.safetensors"
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)

    with pytest.raises(CheckpointError, match=r"has SHA-256 .*, its card promises .*: copy the fi"):
        create_model(NAME, weights=folder)


def test_truncated_weights(folder: Path) -> None:
    file = folder / f"{NAME}.safetensors"
    file.write_bytes(file.read_bytes()[:-100])

    with pytest.raises(CheckpointError, match="bytes, its card promises .*: copy the file again"):
        create_model(NAME, weights=folder)


def test_another_models_weights(folder: Path) -> None:
    replace_weights(folder, safetensors.torch.save(create_model("resnet_20").state_dict()))

    with pytest.raises(CheckpointError, match=f"holds the weights of another model than {NAME}"):
        create_model(NAME, weights=folder)


def test_another_models_card(folder: Path) -> None:
    for kind in (".json", ".safetensors"):
        (folder / f"{NAME}{kind}").rename(folder / f"resnet_32{kind}")

    with pytest.raises(CheckpointError, match=f"resnet_32.json is the card of '{NAME}', not of"):
        create_model("resnet_32", weights=folder)


@pytest.mark.parametrize(("kind", "other"), [(".json", ".safetensors"), (".safetensors", ".json")])
def test_one_file_without_the_other(folder: Path, kind: str, other: str) -> None:
    (folder / f"{NAME}{kind}").unlink()

    with pytest.raises(CheckpointError, match=f"has {NAME}{other} without {NAME}{kind}: copy the"):
        create_model(NAME, weights=folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema": 99}, "has schema 99, this version reads up to 1: update cifar-zoo"),
        ({"schema": None}, "is not the card of weights"),
        ({"mean": [0.5, 0.5]}, r"is not the card of weights \(mean is no tuple"),
        ({"recipe": None}, r"is not the card of weights \(recipe is no"),
        ({"sha256": "0"}, r"is not the card of weights \(sha256 is not 64 hexadecimal digits"),
        ({"size_bytes": MOST_BYTES + 1}, "size_bytes is not between 1 and 1,000,000,000"),
        ({"class_names": []}, "class_names is empty"),
    ],
)
def test_a_card_that_says_what_none_can(
    folder: Path, change: dict[str, object], message: str
) -> None:
    edit_card(folder, **change)

    with pytest.raises(CheckpointError, match=message):
        create_model(NAME, weights=folder)


@pytest.mark.parametrize("content", ["{", "[]", "", "null", " " * 1_000_001])
def test_a_card_that_is_none(folder: Path, content: str) -> None:
    (folder / f"{NAME}.json").write_text(content)

    expected = "not valid JSON|is not the card of weights|it has more than 1,000,000 bytes"
    with pytest.raises(CheckpointError, match=expected):
        create_model(NAME, weights=folder)


def test_a_pickle_is_not_run(folder: Path, tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return os.mkdir, (str(tmp_path / "sprung"),)

    replace_weights(folder, pickle.dumps({"weight": Trap()}))

    with pytest.raises(CheckpointError, match=r"is no safetensors file \(.*nothing of it was load"):
        create_model(NAME, weights=folder)

    assert not (tmp_path / "sprung").exists()


# ---- how they are stored ---------------------------------------------------------------------


def test_a_card_holds_every_fact_of_its_run(run: Checkpoint, folder: Path) -> None:
    renamed = {"weights_sha256": "sha256", "name": "dataset", "digest": "dataset_digest"}
    found = {field.name for field in fields(Card)}
    facts = asdict(run.meta) | asdict(run.meta.dataset)

    kept = asdict(card(NAME, weights=folder))

    for field in (*fields(RunMeta), *fields(DatasetInfo)):
        name = renamed.get(field.name, field.name)
        if field.name == "job":  # says which processes went together, nothing about weights
            continue
        assert name in found, f"cards lack {field.name}"
        if field.name not in ("dataset", "schema"):
            assert kept[name] == facts[field.name], name


def test_a_card_says_what_to_feed_the_model_with(run: Checkpoint, tmp_path: Path) -> None:
    other = Preprocessing(48, (0.1, 0.2, 0.3), (1.0, 1.0, 1.0), "bilinear", 0.9)
    path = with_facts(run, tmp_path / "run", preprocessing=other, initial_weights="somewhere")

    folder = store_weights(path, tmp_path / "weights").parent

    found = card(NAME, weights=folder)
    assert found.input_preprocessing == other
    assert found.initial_weights == "somewhere"
    older = card("resnet_20")
    assert older.input_preprocessing == Preprocessing(32, older.mean, older.std)


def test_the_bytes_are_those_of_the_run(run: Checkpoint, folder: Path) -> None:
    stored = folder / f"{NAME}.safetensors"

    assert stored.read_bytes() == (run.path / "weights.safetensors").read_bytes()
    assert sorted(file.name for file in folder.iterdir()) == [f"{NAME}.json", stored.name]


def test_an_incomplete_run_is_not_stored(run: Checkpoint, tmp_path: Path) -> None:
    path = with_facts(run, tmp_path / "run", finished_at=None)

    with pytest.raises(CheckpointError, match="run is not complete: go on with zoo-train --resume"):
        store_weights(path, tmp_path / "weights")

    assert not (tmp_path / "weights").exists()


def test_a_network_of_the_users_own_is_not_stored(run: Checkpoint, tmp_path: Path) -> None:
    path = with_facts(run, tmp_path / "run", model="antigravity:fly")

    with pytest.raises(ZooError, match="'antigravity:fly' names a network of your own"):
        store_weights(path, tmp_path / "weights")

    assert "antigravity" not in sys.modules


def test_a_damaged_run_is_not_stored(run: Checkpoint, tmp_path: Path) -> None:
    path = with_facts(run, tmp_path / "run")
    (path / "weights.safetensors").write_bytes(b"x" * 100)

    with pytest.raises(CheckpointError, match="weights.safetensors is damaged"):
        store_weights(path, tmp_path / "weights")

    assert not (tmp_path / "weights").exists()


def test_a_large_file_is_not_stored(run: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(ZooError, match="bytes, more than the 1,000 allowed: keep them in a folder"):
        store_weights(run.path, tmp_path / "weights", most_bytes=1000)

    assert SHIPPED_BYTES == 4_000_000
    assert not (tmp_path / "weights").exists()


@pytest.mark.parametrize("val_top1", [0.5, 0.51])
def test_weights_as_good_replace_those_there(
    run: Checkpoint, folder: Path, tmp_path: Path, val_top1: float
) -> None:
    store_weights(with_facts(run, tmp_path / "run", val_top1=val_top1, seed=1), folder)

    assert card(NAME, weights=folder).seed == 1


@pytest.mark.parametrize(
    ("facts", "message"),
    [
        ({"val_top1": 0.49}, r"that are there are better: 50.00% on .* 49.00%; --force replaces"),
        ({"val_top1": None}, "cannot be compared with those of .*; --force replaces them"),
    ],
)
def test_worse_weights_replace_those_there_by_force_only(
    run: Checkpoint, folder: Path, tmp_path: Path, facts: dict[str, object], message: str
) -> None:
    path = with_facts(run, tmp_path / "run", seed=1, **facts)

    with pytest.raises(ZooError, match=message):
        store_weights(path, folder)
    assert card(NAME, weights=folder).seed == 0

    store_weights(path, folder, force=True)
    assert card(NAME, weights=folder).seed == 1


def test_accuracies_on_two_data_sets_are_not_compared(
    run: Checkpoint, folder: Path, tmp_path: Path
) -> None:
    dataset = replace(run.meta.dataset, digest="0" * 64)
    path = with_facts(run, tmp_path / "run", val_top1=0.9, dataset=dataset)

    with pytest.raises(ZooError, match="need an accuracy on held-out images of one data set"):
        store_weights(path, folder)


def test_a_folder_that_cannot_be_written_stays_as_it_was(
    run: Checkpoint, folder: Path, tmp_path: Path
) -> None:
    before = (folder / f"{NAME}.json").read_bytes()
    (folder / f"{NAME}.safetensors").unlink()
    (folder / f"{NAME}.safetensors").mkdir()

    with pytest.raises(OSError, match=f"{NAME}.safetensors"):
        store_weights(with_facts(run, tmp_path / "run", seed=1), folder)

    assert (folder / f"{NAME}.json").read_bytes() == before
    assert len(list(folder.iterdir())) == 2


def test_the_command_writes_and_prints_the_path(
    run: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main([str(run.path), "--out", str(tmp_path / "weights")])

    assert code == 0
    assert capsys.readouterr().out == f"{tmp_path / 'weights' / NAME}.safetensors\n"


def test_the_command_ends_in_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code = main([str(tmp_path)])

    assert code == 2
    assert capsys.readouterr().err == (
        f"python -m zoo.pretrained: {tmp_path} is not a run: it holds no meta.json; "
        "train one with zoo-train MODEL\n"
    )
