"""What can be measured of a run, and of an ONNX file that is only a file."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from profiling.record import Source
from profiling.subject import Subject

if TYPE_CHECKING:
    from zoo.evaluate import Accuracy

ARTIFACT_OPENER = "export.artifact:open_artifact"  # called by the worker; checks the digest


class ExportedFile(Protocol):
    """What is asked of an artifact, such as `export.artifact.Artifact`."""

    @property
    def path(self) -> Path:
        """Where it lies."""
        ...

    @property
    def target(self) -> str:
        """What it was exported to, such as onnx."""
        ...

    @property
    def precision(self) -> str:
        """Number format of the maths."""
        ...

    @property
    def sha256(self) -> str:
        """Its digest."""
        ...

    @property
    def size_bytes(self) -> int:
        """Its size."""
        ...

    @property
    def accuracy(self) -> "Accuracy":
        """Of this very file, on the test split."""
        ...


def run_subjects(
    run: Path, *, artifacts: Iterable[ExportedFile] = (), device: str = "cpu"
) -> list[Subject]:
    """A run on torch's own backends, eager and compile, and the files exported from it.

    Raises:
        CheckpointError: the folder is no run, or its weights are not usable.
    """
    from profiling.cost import cost_of_model
    from zoo.checkpoint import WEIGHTS, Checkpoint
    from zoo.errors import MachineError
    from zoo.session import require_compiler

    checkpoint = Checkpoint.open(run)
    meta = checkpoint.meta
    cost = cost_of_model(checkpoint.model())
    is_evaluated = meta.test_top1 is not None

    def subject(backend: str, opener: str, *, is_own: bool, unavailable: str | None) -> Subject:
        return Subject(
            model=meta.model,
            backend=backend,
            precision="fp32",
            opener=opener,
            path=str(checkpoint.path),
            artifact_sha256=meta.weights_sha256,
            file_bytes=(checkpoint.path / WEIGHTS).stat().st_size,
            num_classes=len(meta.dataset.class_names),
            params=cost.params,
            macs=cost.macs,
            top1=meta.test_top1 if is_own else None,
            top5=meta.test_top5 if is_own else None,
            accuracy_images=meta.dataset.test_images if is_own and is_evaluated else None,
            is_unevaluated=not (is_own and is_evaluated),
            source=Source(
                run=checkpoint.path.resolve().name,
                seed=meta.seed,
                recipe=meta.recipe_name,
                selection=meta.selection,
                weights_sha256=meta.weights_sha256,
                dataset=meta.dataset.name,
                dataset_digest=meta.dataset.digest,
            ),
            unavailable=unavailable,
        )

    try:
        require_compiler(device)
        fault = None
    except MachineError as error:
        fault = str(error)
    # The test accuracy of a run is that of eager: its training measured it that way.
    eager = subject("eager", "zoo.session:open_eager", is_own=True, unavailable=None)
    compiled = subject("compile", "zoo.session:open_compiled", is_own=False, unavailable=fault)
    return [eager, compiled, *(_exported(eager, artifact) for artifact in artifacts)]


def _exported(eager: Subject, artifact: ExportedFile) -> Subject:
    return replace(
        eager,
        backend=artifact.target,
        precision=artifact.precision,
        opener=ARTIFACT_OPENER,
        path=str(artifact.path),
        artifact_sha256=artifact.sha256,
        file_bytes=artifact.size_bytes,
        top1=artifact.accuracy.top1,
        top5=artifact.accuracy.top5,
        accuracy_images=artifact.accuracy.images,
        is_unevaluated=False,
    )


def onnx_subject(file: Path, *, opener: str) -> Subject:
    """An ONNX file that no run of ours made; its images are random.

    Raises:
        ZooError: it is not an ONNX model of images.
    """
    from profiling.onnx_cost import read_onnx
    from zoo.files import sha256_file

    model = read_onnx(file)
    return Subject(
        model=file.stem,
        backend="onnx",
        precision="fp32",  # replaced by what the session finds in the file
        opener=opener,
        path=str(file),
        artifact_sha256=sha256_file(file),
        file_bytes=file.stat().st_size,
        image_shape=model.image_shape,
        num_classes=model.num_classes,
        params=model.cost.params,
        macs=model.cost.macs,
    )
