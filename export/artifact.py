"""An exported file and its manifest: what it is, what it came from, how it was proven."""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from export import PRECISIONS, TARGETS, target_of
from export.mcnemar import Comparison
from export.parity import Parity
from export.raw import RAW
from zoo.checkpoint import DatasetInfo
from zoo.errors import ArtifactError
from zoo.evaluate import Accuracy
from zoo.files import read_json, sha256_file
from zoo.plain import from_plain
from zoo.preprocess import Preprocessing

SCHEMA = 2  # 1: one file, always proven
FOLDER = "artifacts"  # inside a run folder
AGAIN = "write it again with zoo-export"
PASSED, PENDING = "passed", "pending"
REFUTED = "not the model"  # how `pending` begins where a proof failed


@dataclass(frozen=True, kw_only=True, slots=True)
class Artifact:
    """One exported file; all but `path` is what its manifest holds."""

    path: Path
    target: str
    precision: str
    sha256: str  # of the file, or of the list of its files
    size_bytes: int  # of all files
    model: str
    source_weights_sha256: str
    recipe_sha256: str
    dataset: DatasetInfo  # the class names are in here
    parity: Parity | None  # with eager on the CPU; None while the proof is pending
    accuracy: Accuracy | None  # on the whole test split; None while the proof is pending
    versions: dict[str, str]  # of the packages that wrote and ran it
    environment: dict[str, Any]  # device and driver among it, where it was written
    created_at: str  # ISO 8601, UTC
    preprocessing: Preprocessing | None = None  # None in older ones: see input_preprocessing
    is_raw: bool = False  # bytes in, probabilities out
    files: Mapping[str, str] = field(default_factory=dict)  # SHA-256 by name, where there are more
    facts: Mapping[str, Any] = field(default_factory=dict)  # what the writer found out
    comparison: Comparison | None = None  # with eager's answers, where accuracy decides
    pending: str | None = None  # why the machine that wrote the file could not prove it
    proxy_parity: Parity | None = None  # of the graph that a pending file was built from
    proven_by: str | None = None  # runtime and version; None in older ones
    proven_in: Mapping[str, Any] | None = None  # environment of a proof that came later
    build_s: float | None = None  # that writing it took, its proof apart; None in older ones
    schema: int = SCHEMA

    @property
    def input_preprocessing(self) -> Preprocessing:
        """What the file is fed with; older ones knew 32x32 pixels and their data set only."""
        return self.preprocessing or Preprocessing.of(self.dataset)

    @property
    def digests(self) -> Mapping[str, str]:
        """SHA-256 of each of its files by name."""
        return self.files or {self.path.name: self.sha256}

    @property
    def is_refuted(self) -> bool:
        """Whether a proof found that it is not the model."""
        return self.pending is not None and self.pending.startswith(REFUTED)

    @property
    def backend(self) -> str:
        """Its label in tables: the target, and whether it takes bytes."""
        return f"{self.target}-{RAW}" if self.is_raw else self.target

    def to_json(self) -> dict[str, Any]:
        """The manifest; of the path only the file's name is kept."""
        value = asdict(self)
        del value["path"]
        return {"file": self.path.name, "proof": PENDING if self.pending else PASSED, **value}


def artifact_path(
    run: Path, target: str, precision: str, suffix: str, *, raw: bool = False
) -> Path:
    """Where an artifact lies: runs/<run>/artifacts/<target>-<precision>[-raw]<suffix>."""
    return run / FOLDER / f"{target}-{precision}{f'-{RAW}' if raw else ''}{suffix}"


def command_again(path: Path, target: str, *, device: str, precision: str | None = None) -> str:
    """The command that writes an artifact once more; without its precision, as its name tells."""
    run = path.parent.parent if path.parent.name == FOLDER else "RUN"
    told = precision or path.name.partition(".")[0].removesuffix(f"-{RAW}").rpartition("-")[2]
    options = f" --precision {told}" if told in PRECISIONS else ""
    options += f" --device {device}" if device != "cpu" else ""
    return f"zoo-export --to {target}{options} {run}"


def manifest_path(path: Path) -> Path:
    """The manifest beside an artifact: same name, .json."""
    return path.with_name(path.name.partition(".")[0] + ".json")


def combined_digest(files: Mapping[str, str]) -> str:
    """The digest of one file; of several, SHA-256 of the list as sha256sum prints it, by name."""
    if len(files) == 1:
        return next(iter(files.values()))
    lines = "".join(f"{digest}  {name}\n" for name, digest in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def file_digests(paths: Iterable[Path]) -> dict[str, str]:
    """SHA-256 of files by their names."""
    return {path.name: sha256_file(path) for path in sorted(paths)}


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
        files = {str(key): str(digest) for key, digest in (value.get("files") or {}).items()}
        for other in (name, *files):
            path = manifest.with_name(Path(other).name)
            if path.name != other or manifest_path(path) != manifest or path == manifest:
                raise ArtifactError(
                    f"{manifest} is the manifest of another file, {other!r}: {AGAIN}"
                )
        artifact = from_plain(Artifact, value | {"path": manifest.with_name(name), "files": files})
        if artifact.precision not in PRECISIONS:
            raise ValueError(f"there is no precision {artifact.precision!r}")
        int8 = artifact.facts.get("int8", {})
        if not isinstance(int8, Mapping):
            raise TypeError("int8 is no object")
        allowed = int8.get("max_drop", 0.0)
        if type(allowed) not in (int, float) or not 0 <= allowed <= 1:
            raise ValueError(f"int8 may not lose {allowed!r} of the accuracy")
    except (AttributeError, KeyError, TypeError, ValueError) as reason:
        raise ArtifactError(f"{manifest} is not the manifest of an artifact ({reason})") from None
    if artifact.target not in TARGETS:
        raise ArtifactError(f"{manifest} names the target {artifact.target!r}: update cifar-zoo")
    if target_of(artifact.path) != artifact.target:
        raise ArtifactError(f"{manifest} calls {name} a file of {artifact.target}: {AGAIN}")
    if artifact.pending is None and (artifact.parity is None or artifact.accuracy is None):
        raise ArtifactError(f"{manifest} is not the manifest of an artifact (it proves nothing)")
    return artifact


def find_artifacts(
    run: Path, *, on_damage: Callable[[ArtifactError], None] | None = None
) -> list[Artifact]:
    """Artifacts of a run by name; a file without a manifest is none.

    A file that is gone or damaged is still listed, so that whoever opens it can say why it is of
    no use. With `on_damage`, a manifest that cannot be read is reported to it and left out.

    Raises:
        ArtifactError: a manifest cannot be read.
    """
    found = []
    for manifest in manifests(run):
        try:
            found.append(read_manifest(manifest))
        except ArtifactError as error:
            if on_damage is None:
                raise
            on_damage(error)
    return found


def manifests(run: Path) -> list[Path]:
    """Where the manifests of a run's artifacts lie, by name."""
    return sorted((run / FOLDER).glob("[!.]*.json"))


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


def check_digest(artifact: Artifact) -> None:
    """Refuse files that are not those that the manifest describes.

    Raises:
        ArtifactError: one is missing, was changed, or the manifest contradicts itself.
    """
    files = artifact.digests
    if combined_digest(files) != artifact.sha256 or artifact.path.name not in files:
        raise ArtifactError(f"the manifest of {artifact.path} was changed or damaged: {AGAIN}")
    for name, promised in files.items():
        path = artifact.path.with_name(name)
        if not path.is_file():
            raise ArtifactError(f"{artifact.path} lacks {name} beside it: {AGAIN}")
        found = sha256_file(path)
        if found != promised:
            raise ArtifactError(
                f"{path} has SHA-256 {found[:12]}..., but its manifest promises "
                f"{promised[:12]}...: it was changed or damaged; {AGAIN}"
            )
