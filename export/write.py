"""From a run to an artifact: write, check, compare, evaluate; only then keep the file."""

import hashlib
import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from torch import Tensor

from export.artifact import Artifact, artifact_path, manifest_path
from export.parity import IMAGES, Parity, batched_logits, compare
from export.target import ExportTarget
from zoo import __version__
from zoo.checkpoint import Checkpoint, DatasetInfo
from zoo.data import Dataset
from zoo.environment import capture
from zoo.errors import DataError, MachineError
from zoo.evaluate import evaluate
from zoo.files import atomic_file, sha256_file
from zoo.session import EagerSession

INPUT_LAYOUT = "NCHW float32 normalised"


def write_artifact(
    run: Checkpoint,
    target: ExportTarget,
    *,
    precision: str,
    data: Dataset,
    device: str,
    allow: str | None = None,
) -> Artifact:
    """Write a run's model as `target` and prove it on the test split.

    `allow` is that of `Checkpoint.model`.

    The file and its manifest are complete under temporary names before either replaces an older
    one, the manifest last.

    Raises:
        DataError: `data` is not what the run was trained on.
        MachineError: the file does not compute what the model computes.
    """
    info, preprocessing = run.meta.dataset, run.meta.input_preprocessing
    check_dataset(run.path, info, data)
    model = run.model(allow=allow)
    stored = data.test.images[:IMAGES]
    reference = _reference(run, batched_logits(EagerSession(model), stored, preprocessing))
    path = artifact_path(run.path, target.name, precision, target.suffix)
    with atomic_file(manifest_path(path)) as manifest, atomic_file(path) as part:
        example = preprocessing.to_batch(stored[:2]).contiguous()
        target.export(model, example, part, precision=precision, metadata=_metadata(run, precision))
        session = target.open(part, device=device)
        parity = compare(
            reference,
            batched_logits(session, stored, preprocessing),
            tolerance=target.tolerance[precision],
        )
        if not parity.passed:
            raise MachineError(f"{path}: {_failure(parity)}: it was not written")
        artifact = Artifact(
            path=path,
            target=target.name,
            precision=precision,
            sha256=sha256_file(part),
            size_bytes=part.stat().st_size,
            model=run.meta.model,
            source_weights_sha256=run.meta.weights_sha256,
            recipe_sha256=_recipe_sha256(run),
            dataset=info,
            parity=parity,
            accuracy=evaluate(session, data.test.images, data.test.fine, preprocessing),
            versions={"cifar-zoo": __version__, **target.versions()},
            environment=capture(device).to_json(),
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            preprocessing=preprocessing,
        )
        manifest.write_text(json.dumps(artifact.to_json(), indent=1, allow_nan=False) + "\n")
    return artifact


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


def _reference(run: Checkpoint, logits: Tensor) -> Tensor:
    bad = ~logits.isfinite().all(1)
    if bad.any():
        raise MachineError(
            f"the weights of {run.path} are of no use: eager gives NaN or infinite logits for "
            f"test image {int(bad.int().argmax())}; nothing was written"
        )
    return logits


def _failure(parity: Parity) -> str:
    return (
        f"parity with eager failed: a logit of test image {parity.worst_image} is off by "
        f"{parity.max_abs_error:.2g} where {parity.limit:.2g} is allowed, and "
        f"{parity.top1_agreement:.1%} of {parity.images} images keep their class"
    )


def _metadata(run: Checkpoint, precision: str) -> dict[str, str]:
    info, preprocessing = run.meta.dataset, run.meta.input_preprocessing
    return {
        "model": run.meta.model,
        "precision": precision,
        "input_layout": INPUT_LAYOUT,
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
