"""What may leave a run: files that are proven and whole, under names that lead nowhere else."""

import re

from export.artifact import Artifact, check_digest
from export.opening import check_source
from zoo.errors import ArtifactError
from zoo.text import printable

LONGEST_NAME = 100  # characters; file systems take 255 bytes


def check_handover(artifact: Artifact) -> None:
    """Refuse an artifact that nobody should rely on.

    Raises:
        ArtifactError: its proof is pending, or it is not what its manifest or its run says.
    """
    if artifact.pending is not None:
        raise ArtifactError(
            f"{artifact.path} is not handed over, its proof is pending: run zoo-export --prove "
            "where it runs"
        )
    check_digest(artifact)
    check_source(artifact)


def folder_name(artifact: Artifact) -> str:
    """A name from model, target and precision; a manifest may say anything, and is not trusted."""
    name = f"{artifact.model}-{artifact.backend}-{artifact.precision}"
    return re.sub(r"[^A-Za-z0-9_.-]", "_", name)[-LONGEST_NAME:].lstrip("._-") or "model"


def labels(artifact: Artifact) -> str:
    """The names of the classes, one in each line."""
    return "".join(f"{printable(name)}\n" for name in artifact.dataset.class_names)
