import json
import shutil
from dataclasses import replace
from pathlib import Path

import onnxruntime
import pytest
from export_helpers import edit
from triton_schema import enum_name, parsed

from export.artifact import Artifact, combined_digest, file_digests, find_artifact
from export.cli import main
from export.handover import folder_name
from export.triton import add_to_repository, config
from zoo.data import Dataset
from zoo.errors import ArtifactError, ZooError

pytest_plugins = ["export_fixtures"]

NUMPY = {"TYPE_FP32": "tensor(float)", "TYPE_UINT8": "tensor(uint8)"}
NAME = "resnet_20-onnx-fp32"


def tree(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.mark.parametrize("kind", ["exported", "raw"])
def test_the_configuration_is_what_onnx_runtime_finds_in_the_file(
    kind: str, tmp_path: Path, data: Dataset, request: pytest.FixtureRequest
) -> None:
    artifact = request.getfixturevalue(kind)

    version = add_to_repository(artifact, tmp_path / "models")

    model = version.parent
    assert version.name == "1"
    assert tree(model) == ["1/manifest.json", "1/model.onnx", "config.pbtxt", "labels.txt"]
    assert (version / "model.onnx").read_bytes() == artifact.path.read_bytes()
    found = parsed((model / "config.pbtxt").read_text())
    assert (found.name, found.backend) == (model.name, "onnxruntime")
    assert found.default_model_filename == "model.onnx"
    session = onnxruntime.InferenceSession(
        version / found.default_model_filename, providers=["CPUExecutionProvider"]
    )
    for listed, nodes in (
        (found.input, session.get_inputs()),
        (found.output, session.get_outputs()),
    ):
        ((tensor,), (node,)) = listed, nodes
        assert tensor.name == node.name
        assert NUMPY[enum_name(tensor, "data_type")] == node.type
        assert list(tensor.dims) == node.shape[1:]
        assert isinstance(node.shape[0], str)  # the batch, which max_batch_size stands for
    assert found.max_batch_size == 256
    assert list(found.dynamic_batching.preferred_batch_size) == [16, 64, 256]
    assert found.dynamic_batching.max_queue_delay_microseconds == 1000
    assert found.output[0].label_filename == "labels.txt"
    assert (model / "labels.txt").read_text().splitlines() == list(data.class_names)
    assert len(data.class_names) == found.output[0].dims[0]


def test_the_second_time_makes_version_2_and_leaves_the_rest_alone(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    models = tmp_path / "models"
    assert main([str(copied), "--triton", str(models)]) == 0
    file = models / NAME / "config.pbtxt"
    tuned = file.read_text().replace("count: 1", "count: 4") + "# ours\n"
    file.write_text(tuned)
    (models / NAME / "1" / "model.onnx").write_bytes(b"somebody's own")

    code = main([str(copied), "--triton", str(models)])

    assert code == 0
    assert capsys.readouterr().out == f"{models}/{NAME}/1\n{models}/{NAME}/2\n"
    assert file.read_text() == tuned
    assert (models / NAME / "1" / "model.onnx").read_bytes() == b"somebody's own"
    assert (models / NAME / "2" / "model.onnx").read_bytes() == copied.read_bytes()
    assert sorted(path.name for path in (models / NAME).iterdir()) == [
        "1",
        "2",
        "config.pbtxt",
        "labels.txt",
    ]


@pytest.mark.parametrize("change", ["config.pbtxt", "labels.txt"])
def test_a_folder_of_another_network_is_left_alone(
    change: str, exported: Artifact, tmp_path: Path
) -> None:
    model = add_to_repository(exported, tmp_path).parent
    file = model / change
    file.write_text(file.read_text().replace("[ 100 ]", "[ 10 ]").replace("apple", "pear"))
    before = tree(tmp_path)

    with pytest.raises(ZooError) as caught:
        add_to_repository(exported, tmp_path)

    assert str(caught.value) == (
        f"{model} holds another network, or its config.pbtxt was changed beyond scheduling, and is "
        "not replaced: give --triton another folder"
    )
    assert tree(tmp_path) == before


def test_a_version_that_takes_other_pixels_is_refused(exported: Artifact, tmp_path: Path) -> None:
    add_to_repository(exported, tmp_path)
    known = exported.input_preprocessing
    other = replace(exported, preprocessing=replace(known, mean=(0.5, 0.5, 0.5)))

    assert f"(x / 255 - {known.mean}) / {known.std}" in config(exported, NAME)
    assert "(x / 255 - (0.5, 0.5, 0.5))" in config(other, NAME)
    with pytest.raises(ZooError, match="holds another network"):
        add_to_repository(other, tmp_path)


def test_openvino_has_a_free_batch_axis_and_no_batching(
    in_openvino: Artifact, tmp_path: Path
) -> None:
    import openvino

    version = add_to_repository(in_openvino, tmp_path / "models")

    found = parsed((version.parent / "config.pbtxt").read_text())
    assert tree(version) == ["manifest.json", "model.bin", "model.xml"]
    network = openvino.Core().read_model(version / "model.xml")
    assert found.backend == "openvino"
    assert [found.input[0].name] == [network.inputs[0].any_name]
    assert [found.output[0].name] == [network.outputs[0].any_name]
    assert network.inputs[0].partial_shape == openvino.PartialShape(list(found.input[0].dims))
    assert network.outputs[0].partial_shape == openvino.PartialShape(list(found.output[0].dims))
    assert found.max_batch_size == 0
    assert not found.HasField("dynamic_batching")
    assert enum_name(found.instance_group[0], "kind") == "KIND_CPU"


def test_an_engine_takes_the_batches_of_its_profile(exported: Artifact) -> None:
    facts = {"flavor": "tensorrt", "batch_min_opt_max": [1, 32, 128]}

    found = parsed(config(replace(exported, target="trt", facts=facts), "it"))

    assert (found.backend, found.default_model_filename) == ("tensorrt", "model.plan")
    assert found.max_batch_size == 128
    assert list(found.dynamic_batching.preferred_batch_size) == [32]
    assert enum_name(found.instance_group[0], "kind") == "KIND_GPU"


@pytest.mark.parametrize("compatible", [False, True])
def test_an_engine_for_later_releases_needs_an_option_of_the_server(
    compatible: bool, exported: Artifact
) -> None:
    facts = {"flavor": "tensorrt", "batch_min_opt_max": [1, 32, 128]}
    engine = replace(exported, target="trt", facts=facts | {"version_compatible": compatible})

    text = config(engine, "it")

    parsed(text)
    assert ("--backend-config=tensorrt,version-compatible=true" in text) is compatible


def test_an_engine_goes_without_the_graph_that_it_was_built_from(
    copied: Path, tmp_path: Path
) -> None:
    """The file stands in for an engine, which only a GPU could prove."""
    graph = copied.rename(copied.with_name("trt-fp32.onnx"))
    engine = Path(shutil.copy(graph, graph.with_suffix(".engine")))
    manifest = copied.with_suffix(".json").rename(engine.with_suffix(".json"))
    files = file_digests((graph, engine))
    edit(
        manifest,
        file=engine.name,
        target="trt",
        files=files,
        sha256=combined_digest(files),
        facts={"flavor": "tensorrt", "batch_min_opt_max": [1, 32, 128]},
    )

    version = add_to_repository(find_artifact(engine), tmp_path / "models")

    assert version == tmp_path / "models" / "resnet_20-trt-fp32" / "1"
    assert tree(version) == ["manifest.json", "model.plan"]


def test_int8_runs_on_the_cpus_that_it_was_quantised_for(exported: Artifact) -> None:
    found = parsed(config(replace(exported, precision="int8"), "it"))

    assert enum_name(found.instance_group[0], "kind") == "KIND_CPU"


def test_openvino_is_told_of_bf16(exported: Artifact) -> None:
    found = parsed(config(replace(exported, target="openvino", precision="bf16"), "it"))

    assert [(one.key, one.value.string_value) for one in found.parameters] == [("HINT_BF16", "YES")]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"target": "aoti"},
            "--triton does not take aoti, compiled code runs with the torch that compiled it, and "
            "Triton brings another: use --to onnx",
        ),
        (
            {"target": "torchexport"},
            "--triton does not take torchexport, Triton does not run programs of torch.export: "
            "use --to onnx",
        ),
        (
            {"target": "trt", "facts": {"flavor": "rtx"}},
            "--triton takes engines of TensorRT, not of TensorRT-RTX, which Triton does not run: "
            "use --to onnx, or --trt-flavor tensorrt",
        ),
    ],
)
def test_what_triton_does_not_run_is_refused(
    changes: dict[str, object], message: str, exported: Artifact, tmp_path: Path
) -> None:
    with pytest.raises(ZooError) as caught:
        add_to_repository(replace(exported, **changes), tmp_path / "models")

    assert str(caught.value) == message
    assert not (tmp_path / "models").exists()


def test_what_is_not_proven_or_was_changed_is_refused(
    copied: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest, models = copied.with_suffix(".json"), tmp_path / "models"
    edit(manifest, pending="no GPU here")
    with pytest.raises(ArtifactError) as caught:
        add_to_repository(find_artifact(copied), models)
    assert str(caught.value) == (
        f"{copied} is not handed over, its proof is pending: run zoo-export --prove where it runs"
    )

    edit(manifest, pending=None)
    copied.write_bytes(copied.read_bytes() + b"\0")

    assert main([str(copied), "--triton", str(models)]) == 2
    assert "it was changed or damaged" in capsys.readouterr().err
    assert not models.exists()


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("../../x", "x-onnx-fp32"),
        ("/etc/x", "etc_x-onnx-fp32"),
        ("..", "onnx-fp32"),
        ("", "onnx-fp32"),
        ("timm:resnet18", "timm_resnet18-onnx-fp32"),
        ("my.nets:small", "my.nets_small-onnx-fp32"),
        ('a"\nbackend: "python', "a__backend___python-onnx-fp32"),
        ("x" * 300, "x" * 90 + "-onnx-fp32"),
        ("caf\u00e9\0", "caf__-onnx-fp32"),
    ],
)
def test_a_name_leads_nowhere(model: str, name: str, copied: Path, tmp_path: Path) -> None:
    edit(copied.with_suffix(".json"), model=model)
    artifact = find_artifact(copied)

    version = add_to_repository(artifact, tmp_path / "deep" / "models")

    assert folder_name(artifact) == name
    assert version == tmp_path / "deep" / "models" / name / "1"
    assert parsed((version.parent / "config.pbtxt").read_text()).name == name


def test_a_label_is_one_line(copied: Path, tmp_path: Path) -> None:
    manifest = copied.with_suffix(".json")
    value = json.loads(manifest.read_text())
    names = ["../x", "two\nlines", "\u2028", "\x1b[2J", "gro\u00df", ""]
    value["dataset"]["class_names"][:6] = names
    manifest.write_text(json.dumps(value))

    version = add_to_repository(find_artifact(copied), tmp_path / "models")

    lines = (version.parent / "labels.txt").read_text(encoding="utf-8").splitlines()
    assert lines[:6] == ["../x", "two?lines", "?", "?[2J", "gro\u00df", ""]
    assert len(lines) == 100


def test_a_full_disk_leaves_nothing(
    copied: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def fill(source: Path, target: Path) -> None:
        target.write_bytes(b"half")
        raise OSError(28, "No space left on device", str(target))

    models = tmp_path / "models"
    monkeypatch.setattr(shutil, "copyfile", fill)

    assert main([str(copied), "--triton", str(models)]) == 1
    assert capsys.readouterr().err == f"zoo-export: {models / NAME}: No space left on device\n"
    assert list(models.iterdir()) == []
