"""Open an exported file to run it: only what its manifest vouches for, or harmless by nature."""

from pathlib import Path

from export import NATIVE, load_target, target_of
from export.artifact import AGAIN, FOLDER, Artifact, check_digest, find_artifact
from export.target import ExportTarget
from zoo.checkpoint import META, Checkpoint
from zoo.errors import ArtifactError, ZooError, first_line
from zoo.session import InferenceSession
from zoo.text import printable


def open_artifact(
    path: str, device: str, *, trust: bool = False, provider: str | None = None
) -> InferenceSession:
    """Open an artifact to run it.

    With `trust` no manifest is asked: the file may be any file of its format, and native code in
    it runs with the rights of the caller. `provider` is ONNX Runtime's, as in --provider.

    Raises:
        ArtifactError: the file has no manifest, is not the one that its manifest describes, came
            from other weights than its run holds by now, or was found not to be the model.
        MachineError: it cannot run on `device`.
    """
    file = Path(path)
    target = target_of(file)
    if not trust:
        artifact = vouched(file)
        check_source(artifact)
        if artifact.is_refuted:
            raise ArtifactError(f"{file} is {printable(artifact.pending or '')}: {AGAIN}")
        target = artifact.target
    elif not file.is_file():
        raise ArtifactError(f"there is no file {path}")
    if target is None:
        raise ArtifactError(f"{path} is no file of a format that zoo-export writes")
    return _opened(load_target(target, provider=provider), file, device)


def vouched(file: Path) -> Artifact:
    """The artifact that a file is, byte for byte, by the manifest beside it.

    Raises:
        ArtifactError: it has no manifest, or is not the one that its manifest describes.
    """
    try:
        artifact = find_artifact(file)
        check_digest(artifact)
    except ArtifactError as error:
        if target_of(file) not in NATIVE or not file.is_file():
            raise
        raise ArtifactError(
            f"{error}; opening it can run code, for which a manifest has to vouch"
        ) from None
    return artifact


def open_on_tensorrt(path: str, device: str) -> InferenceSession:
    """Open an ONNX artifact on ONNX Runtime's TensorRT provider; see `open_artifact`."""
    return open_artifact(path, device, provider="tensorrt")


def open_foreign(path: str, device: str) -> InferenceSession:
    """Open an ONNX file that is not ours: data, not native code, so it needs no manifest.

    Raises:
        ArtifactError: the file is missing, of another format, damaged, keeps weights in other
            files, or is not a network of one float32 image input.
        MachineError: it cannot run on `device`.
    """
    file = Path(path)
    if file.suffix != ".onnx":
        raise ArtifactError(
            f"{path} is not an .onnx file: only those are opened without a manifest"
        )
    if not file.is_file():
        raise ArtifactError(f"there is no file {path}")
    return _opened(load_target("onnx"), file, device)


def _opened(target: ExportTarget, file: Path, device: str) -> InferenceSession:
    try:
        return target.open(file, device=device)
    except (ZooError, OSError):
        raise
    except Exception as reason:  # of the many kinds that a runtime has for a damaged file
        raise ArtifactError(f"{file} cannot be opened: {first_line(reason)}") from reason


def run_of(path: Path) -> Checkpoint | None:
    """The run that a file lies in as an artifact; None where it was moved out of it.

    Raises:
        CheckpointError: the run cannot be read.
    """
    folder = path.absolute().parent
    if folder.name != FOLDER or not (folder.parent / META).is_file():
        return None
    return Checkpoint.open(folder.parent)


def check_source(artifact: Artifact) -> None:
    """Refuse an artifact whose run was trained again since.

    Raises:
        ArtifactError: its run holds other weights by now.
    """
    run = run_of(artifact.path)
    if run is not None and run.meta.weights_sha256 != artifact.source_weights_sha256:
        raise ArtifactError(
            f"{artifact.path} was exported from other weights than its run holds now: {AGAIN}"
        )
