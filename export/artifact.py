"""An exported file and its manifest: what it is, what it came from, how it was proven."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from export import load_target
from export.parity import Parity
from zoo.checkpoint import META, Checkpoint, DatasetInfo
from zoo.errors import ArtifactError
from zoo.evaluate import Accuracy
from zoo.files import read_json, sha256_file
from zoo.plain import from_plain
from zoo.preprocess import Preprocessing
from zoo.session import InferenceSession

SCHEMA = 1
FOLDER = "artifacts"  # inside a run folder
AGAIN = "write it again with zoo-export"


@dataclass(frozen=True, kw_only=True, slots=True)
class Artifact:
    """One exported file; all but `path` is what its manifest holds."""

    path: Path
    target: str
    precision: str
    sha256: str
    size_bytes: int
    model: str
    source_weights_sha256: str
    recipe_sha256: str
    dataset: DatasetInfo  # the class names are in here
    parity: Parity  # against eager on the CPU
    accuracy: Accuracy  # on the whole test split
    versions: dict[str, str]  # of the packages that wrote and ran it
    environment: dict[str, Any]
    created_at: str  # ISO 8601, UTC
    preprocessing: Preprocessing | None = None  # None in older ones: see input_preprocessing
    schema: int = SCHEMA

    @property
    def input_preprocessing(self) -> Preprocessing:
        """What the file is fed with; older ones knew 32x32 pixels and their data set only."""
        return self.preprocessing or Preprocessing.of(self.dataset)

    def to_json(self) -> dict[str, Any]:
        """The manifest; of the path only the file's name is kept."""
        value = asdict(self)
        del value["path"]
        return {"file": self.path.name, **value}


def artifact_path(run: Path, target: str, precision: str, suffix: str) -> Path:
    """Where an artifact lies: runs/<run>/artifacts/<target>-<precision><suffix>."""
    return run / FOLDER / f"{target}-{precision}{suffix}"


def manifest_path(path: Path) -> Path:
    """The manifest beside an artifact: same name, .json."""
    return path.with_name(path.name.partition(".")[0] + ".json")


def read_manifest(manifest: Path) -> Artifact:
    """Read a manifest; whether its file is the one it describes is not looked at.

    Raises:
        ArtifactError: it is missing, damaged, from a later version, or names a file elsewhere.
    """
    value = read_json(manifest, ArtifactError)
    try:
        if value["schema"] > SCHEMA:
            raise ArtifactError(
                f"{manifest} has schema {value['schema']}, this version reads up to {SCHEMA}: "
                "update cifar-zoo"
            )
        name = str(value["file"])
        path = manifest.with_name(Path(name).name)
        if path.name != name or manifest_path(path) != manifest:
            raise ArtifactError(f"{manifest} is the manifest of another file, {name!r}: {AGAIN}")
        return from_plain(Artifact, value | {"path": path})
    except (KeyError, TypeError, ValueError) as reason:
        raise ArtifactError(f"{manifest} is not the manifest of an artifact ({reason})") from None


def find_artifacts(run: Path) -> list[Artifact]:
    """Artifacts of a run by name; a file without a manifest is none.

    A file that is gone or damaged is still listed, so that whoever opens it can say why it is of
    no use.

    Raises:
        ArtifactError: a manifest cannot be read.
    """
    manifests = sorted((run / FOLDER).glob("[!.]*.json"))
    return [read_manifest(manifest) for manifest in manifests]


def find_artifact(path: Path) -> Artifact:
    """The artifact that a file is, by the manifest beside it.

    Raises:
        ArtifactError: there is no such file, or no manifest.
    """
    if not path.is_file():
        raise ArtifactError(f"there is no artifact {path}: {AGAIN}")
    manifest = manifest_path(path)
    if manifest == path or not manifest.is_file():
        raise ArtifactError(f"{path} has no manifest {manifest.name} beside it: {AGAIN}")
    artifact = read_manifest(manifest)
    if artifact.path != path:
        raise ArtifactError(f"{manifest} is the manifest of {artifact.path.name}, not of {path}")
    return artifact


def open_artifact(path: str, device: str) -> InferenceSession:
    """Open an artifact to run it.

    Raises:
        ArtifactError: the file has no manifest, is not the one that its manifest describes, or
            came from other weights than its run holds by now.
        MachineError: it cannot run on `device`.
    """
    artifact = find_artifact(Path(path))
    found = sha256_file(artifact.path)
    if found != artifact.sha256:
        raise ArtifactError(
            f"{path} has SHA-256 {found[:12]}..., but its manifest promises "
            f"{artifact.sha256[:12]}...: it was changed or damaged; {AGAIN}"
        )
    _check_source(artifact)
    return load_target(artifact.target).open(artifact.path, device=device)


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
    return load_target("onnx").open(file, device=device)


def _check_source(artifact: Artifact) -> None:
    folder = artifact.path.absolute().parent
    if folder.name != FOLDER or not (folder.parent / META).is_file():
        return  # moved out of its run
    if Checkpoint.open(folder.parent).meta.weights_sha256 != artifact.source_weights_sha256:
        raise ArtifactError(
            f"{artifact.path} was exported from other weights than its run holds now: {AGAIN}"
        )
