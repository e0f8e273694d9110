"""A model repository for NVIDIA Triton Inference Server: one more version with each artifact."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from export.artifact import AGAIN, Artifact
from export.handover import check_handover, copy_file, copy_manifest, folder_name, labels
from export.raw import OUTPUT as PROBABILITIES
from export.to_onnx import INPUT, OUTPUT
from zoo.errors import ArtifactError, ZooError
from zoo.files import new_folder

CONFIG, LABELS, MANIFEST = "config.pbtxt", "labels.txt", "manifest.json"
MAX_BATCH = 256  # images of one call, together with those of requests that waited
PREFERRED: tuple[int, ...] = (16, 64, 256)  # images; a batch of such a size does not wait for more
MAX_DELAY_US = 1000  # that the first request of a batch may wait

# Which of its own types OpenVINO takes cannot be said here, but for bf16.
OPENVINO_NOTES = """\
# No dynamic batching: the backend would fix the batch to max_batch_size. So its axis is free.
# A CPU with units for bf16 will use them; the accuracy in the manifest was measured without.
"""
OPENVINO_BF16 = 'parameters { key: "HINT_BF16" value: { string_value: "YES" } }\n'
VERSION_COMPATIBLE_NOTE = """\
# An engine for later releases of TensorRT too; tritonserver wants to be told that it may load it:
# --backend-config=tensorrt,version-compatible=true
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Backend:
    """What Triton calls a runtime and its files."""

    name: str
    files: Mapping[str, str]  # by the suffix of ours


BACKENDS: Mapping[str, Backend] = MappingProxyType(
    {
        "onnx": Backend(name="onnxruntime", files={".onnx": "model.onnx"}),
        "trt": Backend(name="tensorrt", files={".engine": "model.plan"}),
        "openvino": Backend(name="openvino", files={".xml": "model.xml", ".bin": "model.bin"}),
    }
)
REFUSALS: Mapping[str, str] = MappingProxyType(
    {
        "aoti": "compiled code runs with the torch that compiled it, and Triton brings another",
        "torchexport": "Triton does not run programs of torch.export",
    }
)


def add_to_repository(artifact: Artifact, repository: Path) -> Path:
    """Add an artifact to a model repository; return the folder of its version.

    `repository/<model>-<target>-<precision>/` holds config.pbtxt, labels.txt and the versions, each
    with its manifest. A model that is there already gets one more version, and its config.pbtxt,
    which somebody may have tuned, stays as it is.

    Note:
        Triton 2.51 reads such a repository; nobody has served a model from one yet.

    Raises:
        ZooError: Triton does not run this target, or the repository has another network there.
        ArtifactError: the artifact is not proven, or not what its manifest or its run says.
        OSError: the repository cannot be written; it is as it was.
    """
    backend = _backend(artifact)
    check_handover(artifact)
    model = repository / folder_name(artifact)
    if not model.exists():
        with new_folder(model) as part:
            (part / CONFIG).write_text(config(artifact, model.name))
            (part / LABELS).write_text(labels(artifact), encoding="utf-8")
            (part / "1").mkdir()
            _copy(artifact, backend, part / "1")
        return model / "1"
    _check_same(artifact, model)
    numbers = [int(path.name) for path in model.iterdir() if path.name.isdecimal()]
    version = model / str(max(numbers, default=0) + 1)
    with new_folder(version) as part:
        _copy(artifact, backend, part)
    return version


def config(artifact: Artifact, name: str) -> str:
    """The text of config.pbtxt for a model of this name."""
    return f'name: "{name}"\n{_interface(artifact)}{_scheduling(artifact)}'


def _interface(artifact: Artifact) -> str:
    """What the files decide: nothing to be tuned."""
    backend = BACKENDS[artifact.target]
    channels, height, width = artifact.input_preprocessing.image_shape
    image = (height, width, channels) if artifact.is_raw else (channels, height, width)
    free = (-1,) if artifact.target == "openvino" else ()  # elsewhere the batch axis goes unsaid
    sizes = ", ".join(map(str, (*free, *image)))
    classes = ", ".join(map(str, (*free, len(artifact.dataset.class_names))))
    known = artifact.input_preprocessing
    prepared = "bytes" if artifact.is_raw else f"(x / 255 - {known.mean}) / {known.std}"
    return f"""\
# Input: x is RGB, a byte for each value, resized to {height}x{width} pixels; fed: {prepared}.
backend: "{backend.name}"
default_model_filename: "{next(iter(backend.files.values()))}"
input [
  {{
    name: "{INPUT}"
    data_type: {"TYPE_UINT8" if artifact.is_raw else "TYPE_FP32"}
    dims: [ {sizes} ]
  }}
]
output [
  {{
    name: "{PROBABILITIES if artifact.is_raw else OUTPUT}"
    data_type: TYPE_FP32
    dims: [ {classes} ]
    label_filename: "{LABELS}"
  }}
]
"""


def _scheduling(artifact: Artifact) -> str:
    """What may be tuned."""
    if artifact.target == "openvino":
        rest = OPENVINO_BF16 if artifact.precision == "bf16" else OPENVINO_NOTES
        return f"max_batch_size: 0\n{_instances('KIND_CPU')}{rest}"
    largest, preferred = MAX_BATCH, PREFERRED
    kind = "KIND_CPU" if artifact.precision == "int8" else "KIND_AUTO"  # quantised for CPUs
    note = ""
    if artifact.target == "trt":
        _, opt, largest = _profile(artifact)
        kind, preferred = "KIND_GPU", (opt,)
        note = VERSION_COMPATIBLE_NOTE if artifact.facts.get("version_compatible") else ""
    sizes = ", ".join(map(str, preferred))
    return f"""\
{note}max_batch_size: {largest}
{_instances(kind)}dynamic_batching {{
  preferred_batch_size: [ {sizes} ]
  max_queue_delay_microseconds: {MAX_DELAY_US}
}}
"""


def _instances(kind: str) -> str:
    return f"instance_group [\n  {{\n    count: 1\n    kind: {kind}\n  }}\n]\n"


def _backend(artifact: Artifact) -> Backend:
    target = artifact.target
    if target in REFUSALS:
        raise ZooError(f"--triton does not take {target}, {REFUSALS[target]}: use --to onnx")
    if target == "trt" and artifact.facts.get("flavor") != "tensorrt":
        raise ZooError(
            "--triton takes engines of TensorRT, not of TensorRT-RTX, which Triton does not run: "
            "use --to onnx, or --trt-flavor tensorrt"
        )
    return BACKENDS[target]


def _profile(artifact: Artifact) -> tuple[int, int, int]:
    """The smallest, the best and the largest batch of an engine."""
    try:
        smallest, opt, largest = map(int, artifact.facts["batch_min_opt_max"])
    except (KeyError, TypeError, ValueError):
        raise ArtifactError(
            f"the manifest of {artifact.path} does not say which batches it takes: {AGAIN}"
        ) from None
    return smallest, opt, largest


def _copy(artifact: Artifact, backend: Backend, folder: Path) -> None:
    for suffix, name in backend.files.items():
        copy_file(artifact, artifact.path.with_suffix(suffix).name, folder / name)
    copy_manifest(artifact, folder / MANIFEST)


def _check_same(artifact: Artifact, model: Path) -> None:
    config, names = (_text(model / name) for name in (CONFIG, LABELS))
    if _interface(artifact) not in config or names != labels(artifact):
        raise ZooError(
            f"{model} holds another network, or its {CONFIG} was changed beyond scheduling, and is "
            "not replaced: give --triton another folder"
        )


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8", errors="replace") if file.is_file() else ""
