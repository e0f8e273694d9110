"""From a run to an artifact: write, check, compare, evaluate; only then keep the file."""

import hashlib
import json
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from export import check_written
from export.artifact import (
    REFUTED,
    Artifact,
    artifact_path,
    check_digest,
    combined_digest,
    file_digests,
    manifest_path,
    read_manifest,
)
from export.opening import check_source
from export.proof import Proof, Reference, Unproven, prove, prove_parity
from export.raw import LAYOUT, OUTPUT, Bytes, RawModel
from export.target import INT8_MAX_DROP, ExportOptions, ExportTarget, HasGraph, HasProxy, Tolerance
from zoo import __version__
from zoo.checkpoint import Checkpoint, DatasetInfo
from zoo.data import Dataset
from zoo.environment import capture
from zoo.errors import ArtifactError, DataError, MachineError, ZooError, one_line
from zoo.files import atomic_files, locked, write_json
from zoo.session import InferenceSession

UNTOUCHED = "nothing was written"
# Exporters and runtimes fail in their own ways on a network that they do not know.
ANYTHING = (Exception,)
LOSSY_LAYER = 0.25  # error of a layer in int8, by its largest output, with which it is called off
INPUT_LAYOUT = "NCHW float32 normalised"


def write_artifact(
    reference: Reference,
    target: ExportTarget,
    *,
    precision: str,
    options: ExportOptions,
    raw: bool = False,
) -> Artifact:
    """Write a run's model as `target` and prove it on the test split.

    With `raw`, from bytes to probabilities. The file and its manifest are complete under temporary
    names before either replaces an older one, the manifest last.

    Raises:
        ZooError: `raw` is for ONNX files alone.
        MachineError: the file does not compute what the model computes, or a runtime failed; none
            was kept.
    """
    if raw and target.name != "onnx":
        raise ZooError(
            f"from bytes to probabilities is for .onnx files, not for {target.name}: use --to onnx"
        )
    path = artifact_path(reference.run.path, target.name, precision, target.suffix, raw=raw)
    with one_line(path, end=UNTOUCHED, kinds=ANYTHING):
        return _written(reference, target, path, precision=precision, options=options, raw=raw)


def _written(
    reference: Reference,
    target: ExportTarget,
    path: Path,
    *,
    precision: str,
    options: ExportOptions,
    raw: bool,
) -> Artifact:
    run, preprocessing = reference.run, reference.preprocessing
    check_dataset(run.path, run.meta.dataset, reference.data)
    model: nn.Module = reference.model
    if precision == "int8":
        options = replace(options, calibration=reference.calibration(options))
    if raw:
        reference, model = reference.raw(), RawModel(model, preprocessing)
    _ = reference.logits  # weights that are of no use are found before minutes of writing
    tolerance = _tolerance(target, precision, max_drop=options.int8_max_drop)
    manifest = manifest_path(path)
    metadata = _metadata(run, precision, raw=raw)
    with atomic_files(path, last=manifest) as part:
        example = _images(reference, slice(2), raw=raw)
        start = time.perf_counter()
        facts = target.export(
            model, example, part, precision=precision, metadata=metadata, options=options
        )
        build_s = time.perf_counter() - start
        pending = target.pending(part, device=options.device)
        proof, session, proxy_parity = None, None, None
        try:
            if pending is None:
                session = target.open(part, device=options.device)
                proof = prove(session, reference, tolerance)
            elif isinstance(target, HasProxy):
                proxy_parity = prove_parity(target.proxy(part), reference, tolerance)
            else:
                raise MachineError(f"{path} cannot be checked here: {pending}: it was not written")
        except Unproven as error:
            image = _images(reference, slice(error.worst_image, error.worst_image + 1), raw=raw)
            layer = _blamed(model, target, part, image, tolerance)
            if not isinstance(target, HasGraph) and tolerance.logits is not None:
                layer = _blamed_by_parts(
                    model,
                    target,
                    image,
                    tolerance=tolerance.logits,
                    precision=precision,
                    metadata=metadata,
                    options=options,
                )
            raise MachineError(f"{path}: {error}{layer}: it was not written") from None
        parts = [file for file in part.parent.iterdir() if file.is_file()]
        digests = file_digests(parts)
        artifact = Artifact(
            path=path,
            target=target.name,
            precision=precision,
            sha256=combined_digest(digests),
            size_bytes=sum(file.stat().st_size for file in parts),
            files=digests,
            facts=facts or {},
            model=run.meta.model,
            source_weights_sha256=run.meta.weights_sha256,
            recipe_sha256=_recipe_sha256(run),
            dataset=run.meta.dataset,
            **_proven(proof, session),
            pending=pending,
            proxy_parity=proxy_parity,
            versions={"cifar-zoo": __version__, **target.versions()},
            environment=capture(options.device).to_json(),
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            preprocessing=preprocessing,
            is_raw=raw,
            build_s=round(build_s, 2),
        )
        text = json.dumps(artifact.to_json(), indent=1, allow_nan=False) + "\n"
        part.with_name(manifest.name).write_text(text)
    return artifact


def prove_artifact(
    artifact: Artifact,
    reference: Reference,
    target: ExportTarget,
    *,
    device: str,
) -> Artifact:
    """Prove an artifact on this machine, and say so in its manifest.

    Raises:
        ArtifactError: the file is not the one that its manifest describes.
        MachineError: it does not run here, or does not compute what the model computes; then the
            manifest says that and nothing of an earlier proof, and the artifact stays out of every
            table.
    """
    with one_line(artifact.path, end=UNTOUCHED, kinds=ANYTHING):
        return _proven_here(artifact, reference, target, device=device)


def _proven_here(
    artifact: Artifact, reference: Reference, target: ExportTarget, *, device: str
) -> Artifact:
    check_dataset(artifact.path, artifact.dataset, reference.data)
    check_digest(artifact)
    check_written(target, artifact.precision)
    reason = target.pending(artifact.path, device=device)
    if reason is not None:
        raise MachineError(f"{artifact.path} cannot be proven here: {reason}")
    model: nn.Module = reference.model
    if artifact.is_raw:
        reference, model = reference.raw(), RawModel(model, reference.preprocessing)
    check_source(artifact)
    session = target.open(artifact.path, device=device)
    facts = artifact.facts.get("int8", {})
    tolerance = _tolerance(
        target, artifact.precision, max_drop=facts.get("max_drop", INT8_MAX_DROP)
    )
    try:
        proof = prove(session, reference, tolerance)
    except Unproven as error:
        image = _images(
            reference, slice(error.worst_image, error.worst_image + 1), raw=artifact.is_raw
        )
        layer = _blamed(model, target, artifact.path, image, tolerance)
        refuted = replace(
            artifact,
            **_proven(None, None),
            pending=f"{REFUTED} on {session.runtime}: {error}{layer}",
            proven_in=None,
        )
        _say_in_manifest(refuted)
        raise MachineError(f"{artifact.path}: {error}{layer}: its manifest says so now") from None
    proven = replace(
        artifact,
        **_proven(proof, session),
        pending=None,
        proven_in=capture(device).to_json(),
        schema=max(artifact.schema, 2),
    )
    _say_in_manifest(proven)
    return proven


def _say_in_manifest(artifact: Artifact) -> None:
    """Replace the manifest by one that tells more of the same files.

    Raises:
        ArtifactError: the artifact was written again while it was looked at.
    """
    with locked(artifact.path.parent):
        if read_manifest(manifest_path(artifact.path)).sha256 != artifact.sha256:
            raise ArtifactError(f"{artifact.path} was written again meanwhile: prove it again")
        write_json(manifest_path(artifact.path), artifact.to_json())


def check_dataset(source: Path, expected: DatasetInfo, data: Dataset) -> None:
    """Refuse images that are not those that `source`, a run or an artifact, was made with.

    Raises:
        DataError: the digests differ.
    """
    if data.digest != expected.digest:
        raise DataError(
            f"{source} belongs to {expected.name} with digest {expected.digest[:12]}..., "
            f"but {data.name} as found has {data.digest[:12]}...: point --data-dir at the same data"
        )


def _tolerance(target: ExportTarget, precision: str, *, max_drop: float) -> Tolerance:
    """The target's; how much int8 may lose is up to whoever asked for it."""
    tolerance = target.tolerance[precision]
    return replace(tolerance, max_drop=max_drop) if tolerance.is_lossy else tolerance


def _proven(proof: Proof | None, session: InferenceSession | None) -> dict[str, Any]:
    return {
        "parity": proof.parity if proof else None,
        "accuracy": proof.accuracy if proof else None,
        "comparison": proof.comparison if proof else None,
        "proven_by": session.runtime if session else None,
    }


def _images(reference: Reference, rows: slice, *, raw: bool) -> Tensor:
    """Test images as the file takes them."""
    preprocessing = reference.preprocessing
    images = preprocessing.to_batch(reference.data.test.images[rows]).contiguous()
    return Bytes(preprocessing.mean, preprocessing.std).restore(images) if raw else images


def _blamed(
    model: nn.Module, target: ExportTarget, path: Path, image: Tensor, tolerance: Tolerance
) -> str:
    """The first layer of a file that is off, as words to add to what went wrong.

    Nothing is said of formats that show no layers.
    """
    from export.blame import first_stray, in_words

    if not isinstance(target, HasGraph):
        return ""
    limit = LOSSY_LAYER if tolerance.logits is None else tolerance.logits
    return in_words(lambda: first_stray(model, target.graph(path), image, limit))


def _blamed_by_parts(model: nn.Module, target: ExportTarget, image: Tensor, **how: Any) -> str:
    """The same where a format shows no layers, by writing parts of the model."""
    from export.bisect import bisected
    from export.blame import in_words

    return in_words(lambda: bisected(model, target, image, **how))


def _metadata(run: Checkpoint, precision: str, *, raw: bool) -> Mapping[str, str]:
    info, preprocessing = run.meta.dataset, run.meta.input_preprocessing
    return {
        "model": run.meta.model,
        "precision": precision,
        "input_layout": LAYOUT if raw else INPUT_LAYOUT,
        **({"output": OUTPUT} if raw else {}),
        **{key: _text(value) for key, value in asdict(preprocessing).items()},
        "class_names": json.dumps(info.class_names),
        "dataset": info.name,
        "dataset_sha256": info.digest,
        "weights_sha256": run.meta.weights_sha256,
        "recipe_sha256": _recipe_sha256(run),
        "cifar_zoo_version": __version__,
    }


def _text(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _recipe_sha256(run: Checkpoint) -> str:
    text = json.dumps(dict(run.meta.recipe), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()
