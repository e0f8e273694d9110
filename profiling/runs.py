"""What can be measured: a run, an ONNX file that is only a file, a network that no run made."""

import hashlib
import json
from collections.abc import Iterable
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from profiling.footprint import Footprint
from profiling.record import Source
from profiling.subject import Opening, Subject
from zoo.errors import ZooError
from zoo.text import printable

if TYPE_CHECKING:
    from torch import nn

    from zoo.cost import Cost
    from zoo.evaluate import Accuracy

ARTIFACT_OPENER = "export.opening:open_artifact"  # called by the worker; checks the digest
OPEN_EAGER = "zoo.session:open_eager"
CATALOGUE_SIZE = 32  # height and width of the images whose MACs the catalogue promises


class Agreement(Protocol):
    """What is asked of a comparison, such as `export.parity.Parity`."""

    @property
    def max_abs_error(self) -> float:
        """Of an answer."""
        ...

    @property
    def top1_agreement(self) -> float:
        """Share of images with the same class."""
        ...


class ExportedFile(Protocol):
    """What is asked of an artifact, such as `export.artifact.Artifact`."""

    @property
    def path(self) -> Path:
        """Where it lies."""
        ...

    @property
    def backend(self) -> str:
        """What it was exported to, such as onnx, or onnx-raw where it takes bytes."""
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
    def build_s(self) -> float | None:
        """Seconds that writing it took; None where that is not known."""
        ...

    @property
    def accuracy(self) -> "Accuracy | None":
        """Of this very file, on the test split; None while its proof is pending."""
        ...

    @property
    def parity(self) -> Agreement | None:
        """Of this very file with eager; None while its proof is pending."""
        ...

    @property
    def pending(self) -> str | None:
        """Why it is not proven to be the model."""
        ...


def run_subjects(
    run: Path,
    *,
    artifacts: Iterable[ExportedFile] = (),
    device: str = "cpu",
    allow: str | None = None,
) -> list[Subject]:
    """A run on torch's own backends, eager and compile, and the files exported from it.

    A run of somebody's own network, named package.module:function, is opened only where `allow`
    repeats that name.

    Raises:
        CheckpointError: the folder is no run, its weights are not usable, or `allow` is missing.
    """
    from zoo.checkpoint import WEIGHTS, Checkpoint

    checkpoint = Checkpoint.open(run)
    meta = checkpoint.meta
    preprocessing = meta.input_preprocessing
    network = checkpoint.model(allow=allow)
    cost, footprint = _counted(network, preprocessing.image_shape)
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
            image_shape=preprocessing.image_shape,
            num_classes=len(meta.dataset.class_names),
            params=cost.params,
            macs=cost.macs,
            footprint=footprint,
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
            preprocessing=preprocessing,
            allow=allow,
            eager=None if is_own else Opening(OPEN_EAGER, str(checkpoint.path), allow),
            unavailable=unavailable,
        )

    fault = _compiler_fault(device)
    # The test accuracy of a run is that of eager: its training measured it that way.
    eager = subject("eager", OPEN_EAGER, is_own=True, unavailable=None)
    compiled = subject("compile", "zoo.session:open_compiled", is_own=False, unavailable=fault)
    return [eager, compiled, *(_exported(eager, artifact) for artifact in artifacts)]


def _exported(eager: Subject, artifact: ExportedFile) -> Subject:
    accuracy, parity = artifact.accuracy, artifact.parity
    why = printable(artifact.pending or "")  # of somebody's manifest
    reason = f"its proof is pending: {why} (zoo-export --prove {artifact.path})"
    return replace(
        eager,
        backend=artifact.backend,
        precision=artifact.precision,
        opener=ARTIFACT_OPENER,
        path=str(artifact.path),
        allow=None,
        eager=Opening(eager.opener, eager.path, eager.allow),
        artifact_sha256=artifact.sha256,
        file_bytes=artifact.size_bytes,
        build_s=artifact.build_s,
        top1=accuracy.top1 if accuracy else None,
        top5=accuracy.top5 if accuracy else None,
        accuracy_images=accuracy.images if accuracy else None,
        parity_max_error=parity.max_abs_error if parity else None,
        parity_agreement=parity.top1_agreement if parity else None,
        is_unevaluated=False,
        unavailable=reason if artifact.pending else None,
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
        precision=model.precision,
        opener=opener,
        path=str(file),
        artifact_sha256=sha256_file(file),
        file_bytes=file.stat().st_size,
        image_shape=model.image_shape,
        num_classes=model.num_classes,
        params=model.cost.params,
        macs=model.cost.macs,
        footprint=model.footprint,
    )


def check_model(name: str, *, image_size: int) -> None:
    """Refuse what `model_subjects` could not measure; only a network of the user's own is built.

    Raises:
        UnknownModelError: nothing is named like that; the message holds the nearest names.
        ZooError: the network takes no images of this size, or it is the user's and does not work.
    """
    from zoo.models import create_model, model_spec
    from zoo.own import is_own

    if is_own(name):
        create_model(name, image_size=image_size)
        return
    sizes = model_spec(name).sizes
    if image_size not in sizes:
        raise ZooError(f"model {name!r} takes images of {sizes}, got {image_size}")


def model_subjects(name: str, *, image_size: int = 32, device: str = "cpu") -> list[Subject]:
    """A network that no run made, eager and compiled: untrained, on random images.

    One that cannot be built is a subject too: a worker meets the reason, which its record keeps.
    """
    from zoo.session import UNTRAINED_CLASSES

    cost, footprint, digest = _structure(name, image_size)
    eager = Subject(
        model=name,
        backend="eager",
        precision="fp32",
        opener="zoo.session:open_untrained",
        path=f"{name}@{image_size}",
        artifact_sha256=digest,
        file_bytes=None,
        image_shape=(3, image_size, image_size),
        num_classes=UNTRAINED_CLASSES,
        params=cost.params,
        macs=cost.macs,
        footprint=footprint,
    )
    compiled = replace(
        eager,
        backend="compile",
        opener="zoo.session:open_untrained_compiled",
        eager=Opening(eager.opener, eager.path),
        unavailable=_compiler_fault(device),
    )
    return [eager, compiled]


def _structure(name: str, image_size: int) -> tuple["Cost", Footprint | None, str]:
    """What a network costs, and a digest of its name, its image size and its state dict."""
    import torch

    from zoo.cost import Cost
    from zoo.models import MODELS, create_model
    from zoo.own import is_own

    entries: list[tuple[str, list[int], str]] = []
    spec, cost, footprint = MODELS.get(name), Cost(None, None), None
    with suppress(Exception):  # the worker's to report, if it cannot build the network either
        # A network of the user's may compute something while it is built: that one gets storage.
        with nullcontext() if is_own(name) else torch.device("meta"):
            network = create_model(name, image_size=image_size)
        entries += [(key, list(x.shape), str(x.dtype)) for key, x in network.state_dict().items()]
        known = None
        if spec is not None and image_size == CATALOGUE_SIZE:
            known = Cost(spec.params, spec.macs)
        cost, footprint = _counted(network, (3, image_size, image_size), known)
    text = json.dumps([name, image_size, entries])
    return cost, footprint, hashlib.sha256(text.encode()).hexdigest()


def _counted(
    network: "nn.Module", image_shape: tuple[int, int, int], known: "Cost | None" = None
) -> tuple["Cost", Footprint | None]:
    """What a network costs, unless that is `known`, and its footprint.

    Of one that needs more than shapes to run, the parameters alone.
    """
    from profiling.activation import footprint_of
    from zoo.cost import Cost, cost_of_model

    params = sum(x.numel() for x in network.parameters() if x.requires_grad)
    cost, footprint = known or Cost(params, None), None
    with suppress(Exception):  # whatever somebody's own network raises on the meta device
        cost = known or cost_of_model(network, image_shape)
        footprint = footprint_of(network, image_shape)
    return cost, footprint


def _compiler_fault(device: str) -> str | None:
    """Why torch.compile does not work here."""
    from zoo.errors import MachineError
    from zoo.session import require_compiler

    try:
        require_compiler(device)
    except MachineError as error:
        return str(error)
    return None
