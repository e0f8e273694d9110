"""Real files that may run code: one changed byte, and they are not opened."""

from importlib.util import find_spec
from pathlib import Path

import pytest
from few_images import few_images
from sample_run import sample_run

from export import export_model
from export.opening import open_artifact
from export.use_cli import main_eval, main_predict
from profiling.cli import main as main_bench
from zoo.data import Dataset, load_dataset
from zoo.errors import ArtifactError

MODEL = "own_network:small"


@pytest.fixture(scope="module")
def data() -> Dataset:
    return few_images(load_dataset("cifar100-mini"), train=256)


@pytest.fixture(scope="module")
def run(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sample_run(tmp_path_factory.mktemp("runs") / "small-s0", data, model=MODEL).path


@pytest.mark.parametrize("suffix", [".engine", ".aoti.pt2", ".export.pt2"])
def test_the_commands_say_why_and_which_option_they_have(
    suffix: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "run" / "artifacts" / f"theirs{suffix}"
    path.parent.mkdir(parents=True)
    path.touch()

    codes = [
        main_predict([str(tmp_path / "cat.png"), "--artifact", str(path)]),
        main_eval([str(path)]),
        main_bench([str(path)]),
    ]

    assert codes == [2, 2, 2]
    why = (
        f"{path} has no manifest theirs.json beside it: write it again with zoo-export; opening it "
        "can run code, for which a manifest has to vouch"
    )  # and --trust would not open it: nothing but a run says which images it takes
    assert capsys.readouterr().err.splitlines() == [
        f"zoo-predict: {why}",
        f"zoo-eval: {why}",
        f"zoo-bench: {path} has no manifest beside it in a run, which has to vouch for it: only "
        ".onnx files are measured alone",
    ]


@pytest.mark.parametrize("target", ["torchexport", "trt"])
def test_one_changed_byte_is_refused(run: Path, data: Dataset, target: str) -> None:
    if target == "trt" and find_spec("tensorrt_rtx_bindings") is None:
        pytest.skip("needs the extra trt-rtx")
    path = export_model(run, target=target, data=data, allow=MODEL).path
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)

    with pytest.raises(ArtifactError) as caught:
        open_artifact(str(path), "cpu")

    message = str(caught.value)
    assert message.startswith(f"{path} has SHA-256 ")
    assert message.endswith("; opening it can run code, for which a manifest has to vouch")
