import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from export_helpers import teach
from sample_run import sample_run

from export import export_model
from export.artifact import Artifact
from export.opening import open_artifact
from export.scores import Evaluation, evaluate_scores, table
from export.use_cli import main_eval
from zoo.checkpoint import Checkpoint
from zoo.data import Dataset, load_dataset
from zoo.errors import MachineError
from zoo.preprocess import Preprocessing
from zoo.session import EagerSession


@pytest.fixture(scope="module")
def data() -> Dataset:
    return load_dataset("cifar100-mini")


@pytest.fixture(scope="module")
def run(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    path = tmp_path_factory.mktemp("project") / "runs" / "resnet_20-s0"
    return sample_run(path, data, change=lambda network: teach(network, data))


@pytest.fixture(scope="module")
def artifact(run: Checkpoint, data: Dataset) -> Artifact:
    return export_model(run, data=data)


@pytest.fixture(scope="module")
def result(run: Checkpoint, data: Dataset) -> Evaluation:
    return evaluate(run, data)


def evaluate(run: Checkpoint, data: Dataset, *, batch: int = 256) -> Evaluation:
    session = EagerSession(run.model())
    return evaluate_scores(
        session,
        data,
        model="resnet_20",
        subject="it",
        preprocessing=Preprocessing.of(data),
        batch=batch,
    )


def guesses(run: Checkpoint, data: Dataset) -> np.ndarray:
    """The class indices of each test image, best first, without the code under test."""
    pixels = data.test.images.astype(np.float32) / 255
    normal = (pixels - np.float32(data.mean)) / np.float32(data.std)
    with torch.no_grad():
        logits = run.model()(torch.from_numpy(normal.transpose(0, 3, 1, 2)))
    return np.argsort(-logits.numpy(), axis=1)


def test_totals_equal_a_count_by_hand(run: Checkpoint, result: Evaluation, data: Dataset) -> None:
    best = guesses(run, data)

    truth, coarse = data.test.fine, data.test.coarse
    assert coarse is not None
    coarse_of_fine = {fine: superclass for fine, superclass in zip(truth, coarse, strict=True)}
    superclass_guess = np.array([coarse_of_fine[guess] for guess in best[:, 0]])
    assert result.images == len(truth) == 1000
    assert result.top1 == (best[:, 0] == truth).mean()
    assert result.top5 == (best[:, :5] == truth[:, None]).any(1).mean()
    assert result.superclass_top1 == (superclass_guess == coarse).mean()
    assert 0 < result.top1 < result.top5 < 1  # the count is not a count of nothing
    assert result.superclass_top1 > result.top1


def test_classes_equal_a_count_by_hand(run: Checkpoint, result: Evaluation, data: Dataset) -> None:
    guess, truth = guesses(run, data)[:, 0], data.test.fine

    assert [score.name for score in result.classes] == list(data.class_names)
    for index, score in enumerate(result.classes):
        own = truth == index
        assert (score.images, score.top1) == (own.sum(), (guess[own] == index).mean())


def test_superclasses_equal_a_count_by_hand(
    run: Checkpoint, result: Evaluation, data: Dataset
) -> None:
    guess, truth, coarse = guesses(run, data)[:, 0], data.test.fine, data.test.coarse

    assert data.coarse_names is not None
    assert coarse is not None
    assert [score.name for score in result.superclasses] == list(data.coarse_names)
    for index, score in enumerate(result.superclasses):
        own = coarse == index
        members = np.unique(truth[own])
        assert score.images == own.sum()
        assert score.class_right == (guess[own] == truth[own]).mean()
        assert score.superclass_right == np.isin(guess[own], members).mean()


def test_batch_changes_nothing(run: Checkpoint, result: Evaluation, data: Dataset) -> None:
    assert evaluate(run, data, batch=300) == result


def test_artifact_scores_as_its_manifest_says(artifact: Artifact, data: Dataset) -> None:
    session = open_artifact(str(artifact.path), "cpu")

    scores = evaluate_scores(
        session,
        data,
        model=artifact.model,
        subject="it",
        preprocessing=artifact.input_preprocessing,
    )

    assert (scores.top1, scores.top5) == (artifact.accuracy.top1, artifact.accuracy.top5)
    assert (scores.backend, scores.precision) == ("onnx", "fp32")


def test_data_without_superclasses(run: Checkpoint, result: Evaluation, data: Dataset) -> None:
    train, test = (replace(split, coarse=None) for split in (data.train, data.test))
    plain = replace(data, train=train, test=test, coarse_names=None)

    scores = evaluate(run, plain)

    assert (scores.superclass_top1, scores.superclasses) == (None, ())
    assert (scores.top1, scores.classes) == (result.top1, result.classes)
    assert "superclass" not in table(scores)


def test_class_without_images_has_no_score(run: Checkpoint, data: Dataset) -> None:
    rows = data.test.fine != 7
    assert data.test.coarse is not None
    test = replace(
        data.test,
        images=data.test.images[rows],
        fine=data.test.fine[rows],
        coarse=data.test.coarse[rows],
    )

    scores = evaluate(run, replace(data, test=test))

    assert (scores.images, scores.classes[7].images, scores.classes[7].top1) == (990, 0, None)
    assert json.loads(json.dumps(scores.to_json()))["classes"][7]["top1"] is None
    assert f"{data.class_names[7]}  " in table(scores)


def test_nan_has_no_accuracy(run: Checkpoint, data: Dataset) -> None:
    model = run.model()
    torch.nn.init.constant_(model.head.bias, float("nan"))

    with pytest.raises(MachineError, match="it gives NaN or infinite logits: it has no accuracy"):
        evaluate_scores(
            EagerSession(model),
            data,
            model="x",
            subject="it",
            preprocessing=Preprocessing.of(data),
        )


def test_table_fits_a_terminal(result: Evaluation, data: Dataset) -> None:
    text = table(result)

    lines = text.splitlines()
    assert max(map(len, lines)) <= 80
    assert text.isascii()
    assert f"top-1             {result.top1:6.1%}" in lines
    assert f"top-5             {result.top5:6.1%}" in lines
    assert f"superclass top-1  {result.superclass_top1:6.1%}" in lines
    assert "superclass                      images  class right  superclass right" in lines
    for name in data.class_names:
        assert name in text


def test_long_class_names_are_cut_in_the_table(result: Evaluation) -> None:
    long = replace(result.classes[0], name="a" * 90)

    lines = table(replace(result, classes=(long, *result.classes[1:]))).splitlines()

    assert max(map(len, lines)) <= 80
    assert any(line.startswith("a" * 37 + "...") for line in lines)


# The command


def test_newest_run_is_evaluated(
    run: Checkpoint,
    result: Evaluation,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(run.path.parents[1])

    code = main_eval([])

    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    assert out == table(replace(result, subject=f"runs/{run.path.name}")) + "\n"


def test_json_holds_the_whole_result(
    run: Checkpoint, result: Evaluation, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main_eval([str(run.path), "--json", "--batch", "300"])

    out, err = capsys.readouterr()
    assert (code, err) == (0, "")
    expected = replace(result, subject=str(run.path)).to_json()
    assert json.loads(out) == json.loads(json.dumps(expected))


def test_artifact_is_evaluated_with_the_data_of_its_manifest(
    artifact: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(shutil.copytree(artifact.path.parent, tmp_path / "elsewhere")) / artifact.path.name

    code = main_eval([str(path), "--json"])

    scores = json.loads(capsys.readouterr().out)
    assert code == 0
    assert scores["subject"] == str(path)
    assert scores["model"] == "resnet_20"
    assert scores["backend"] == "onnx"
    assert scores["dataset"] == "cifar100-mini"
    assert scores["top1"] == artifact.accuracy.top1


def test_changed_artifact_is_refused(
    artifact: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path(shutil.copytree(artifact.path.parent, tmp_path / "elsewhere")) / artifact.path.name
    path.write_bytes(path.read_bytes() + b"\0")

    assert main_eval([str(path)]) == 2
    assert "it was changed or damaged; write it again with zoo-export" in capsys.readouterr().err


def test_other_images_are_refused(
    run: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = shutil.copytree(run.path, tmp_path / "run")
    meta = json.loads((other / "meta.json").read_text())
    meta["dataset"]["digest"] = "0" * 64
    (other / "meta.json").write_text(json.dumps(meta))

    assert main_eval([str(other)]) == 2
    assert "belongs to cifar100-mini with digest 000000000000..., but" in capsys.readouterr().err


@pytest.mark.parametrize("shape", [(10,), (1000,), (100, 1, 1), ()])
def test_another_shape_than_one_number_for_each_class_is_refused(
    shape: tuple[int, ...], data: Dataset
) -> None:
    class FakeSession:
        backend, precision, runtime, device = "onnx", "fp32", "none", "cpu"

        def run(self, images: torch.Tensor) -> torch.Tensor:
            return torch.zeros(len(images), *shape)

    with pytest.raises(
        MachineError, match=r"^x\.onnx gives logits of shape \(\d+,.* for \d+ images"
    ):
        evaluate_scores(
            FakeSession(),
            data,
            model="resnet_20",
            subject="x.onnx",
            preprocessing=Preprocessing.of(data),
        )


def test_trusted_file_is_evaluated_with_the_data_of_its_run(
    artifact: Artifact, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Path(shutil.copytree(artifact.path.parents[1], tmp_path / "run"))
    path = run / "artifacts" / artifact.path.name
    path.with_suffix(".json").unlink()

    assert main_eval([str(path), "--trust", "--provider", "cpu", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["top1"] == artifact.accuracy.top1

    alone = path.rename(tmp_path / path.name)
    assert main_eval([str(alone), "--trust"]) == 2  # nothing says which images it takes
    (line,) = capsys.readouterr().err.splitlines()
    assert "has no manifest onnx-fp32.json beside it" in line
    assert line.endswith(
        "outside its run nothing else says which images it takes: "
        "put it back, or its manifest beside it"
    )


def test_memory_that_runs_out_is_one_line(
    run: Checkpoint, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fake_full_memory(session: EagerSession, images: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to\nmore")

    monkeypatch.setattr(EagerSession, "run", fake_full_memory)

    assert main_eval([str(run.path)]) == 1
    assert capsys.readouterr().err == (
        f"zoo-eval: {run.path}: DefaultCPUAllocator: can't allocate memory: you tried to: "
        "pass a smaller --batch\n"
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--batch", "0"], "expected a whole number of 1 or more, got '0'"),
        (["--batch", "1,x"], "expected a whole number of 1 or more, got '1,x'"),
        ([], "no complete run in runs: train one with zoo-train MODEL"),
        (["nowhere"], "there is no run nowhere"),
        (["net.onnx"], "there is no artifact net.onnx: write it again with zoo-export"),
        (["foreign.onnx"], "foreign.onnx has no manifest foreign.json beside it"),
        (["."], ". is not a run: it holds no meta.json"),
        (["net.engine"], "there is no artifact net.engine: write it again with zoo-export"),
    ],
)
def test_mistake_is_one_line(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("foreign.onnx").write_bytes(b"")

    code = exit_code(arguments)

    out, err = capsys.readouterr()
    assert (code, out) == (2, "")
    assert err.startswith("zoo-eval: ")
    assert err.count("\n") == 1
    assert message in err


def exit_code(arguments: list[str]) -> object:
    try:
        return main_eval(arguments)
    except SystemExit as stop:
        return stop.code
