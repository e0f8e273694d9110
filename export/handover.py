"""What may leave a run: files that are proven and whole, under names that lead nowhere else."""

import re
import shutil
from pathlib import Path

from export.artifact import Artifact, check_digest
from export.onnx_file import load_onnx
from export.opening import check_source
from export.target import require
from zoo.errors import ArtifactError
from zoo.files import sha256_file, write_json
from zoo.text import printable

LONGEST_NAME = 100  # characters; file systems take 255 bytes


def check_handover(artifact: Artifact) -> None:
    """Refuse an artifact that nobody should rely on.

    Raises:
        ArtifactError: its proof is pending, it is not what its manifest or its run says, or it is
            ONNX that keeps tensors in other files.
    """
    if artifact.pending is not None:
        raise ArtifactError(
            f"{artifact.path} is not handed over, its proof is pending: run zoo-export --prove "
            "where it runs"
        )
    check_digest(artifact)
    check_source(artifact)
    if artifact.target == "onnx":
        require("onnx", extra="cpu", needed_by=f"handing over {artifact.path.name}")
        load_onnx(artifact.path)


def copy_file(artifact: Artifact, name: str, to: Path) -> None:
    """Copy one file of an artifact.

    Raises:
        ArtifactError: it is not, or not any more, the one that was proven.
    """
    shutil.copyfile(artifact.path.with_name(name), to)
    if sha256_file(to) != artifact.digests[name]:
        raise ArtifactError(f"{artifact.path} was written again meanwhile: hand it over again")


def copy_manifest(artifact: Artifact, to: Path) -> None:
    """Write what was known when the artifact was opened: its file may tell of another by now."""
    write_json(to, artifact.to_json())


def folder_name(artifact: Artifact) -> str:
    """A name from model, target and precision; a manifest may say anything, and is not trusted."""
    name = f"{artifact.model}-{artifact.backend}-{artifact.precision}"
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name)[-LONGEST_NAME:].lstrip("._-") or "model"


def labels(artifact: Artifact) -> str:
    """The names of the classes, one in each line."""
    return "".join(f"{printable(name)}\n" for name in artifact.dataset.class_names)
