"""Weights that others trained, for a network that is then trained further.

All of a network but its classifier has to fit; the classifier is taken over where the classes are
as many, and else stays as it was initialised.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor, nn

from zoo import hub
from zoo.errors import MachineError, ZooError, first_line
from zoo.neighbours import Neighbour, is_adapted

WEIGHTS, FILE_OPTION = "model.safetensors", "--pretrained-file FILE.safetensors"
HUB_OWNER = "timm/"  # whose repositories hold tensors under timm's own names
PICKLES = (".bin", ".ckpt", ".pickle", ".pkl", ".pt", ".pth", ".tar")
MOST_BYTES = 8_000_000_000  # of a file: 2 billion weights in fp32
COUNTER = "num_batches_tracked"  # of a batch norm; older files go without, and nothing reads it


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """Tensors by name, and where they are from."""

    tensors: Mapping[str, Tensor]
    source: str  # "hub:OWNER/REPO@COMMIT" or "sha256:DIGEST" of a file
    place: str  # for people: what to name in a message


def check_file(file: Path) -> None:
    """Refuse what `from_file` would not even begin to read.

    Raises:
        ZooError: the file does not exist, or is a pickle by its name.
    """
    if file.suffix.lower() in PICKLES:
        raise ZooError(
            f"{file} is a pickle by its name, and reading a pickle runs code that it holds: pass "
            "weights that were saved as .safetensors"
        )
    if not file.is_file():
        raise ZooError(f"there is no file {file}: pass {FILE_OPTION}")


def from_file(file: Path) -> Weights:
    """Read a safetensors file.

    Raises:
        ZooError: it does not exist, or is anything else, such as a pickle.
    """
    import safetensors
    import safetensors.torch

    check_file(file)
    data = file.read_bytes()
    try:
        tensors = safetensors.torch.load(data)
    except safetensors.SafetensorError as reason:
        raise ZooError(
            f"{file} is no safetensors file, or it is damaged ({first_line(reason)})"
        ) from None
    return Weights(tensors, f"sha256:{hashlib.sha256(data).hexdigest()}", str(file))


def check_hub(spec: Neighbour, *, image_size: int) -> str:
    """The repository of the ImageNet weights that timm names for one of its networks.

    Raises:
        ZooError: images of this size meet a stem that timm's weights do not know, or timm names no
            weights of its own format.
    """
    if is_adapted(image_size):
        raise ZooError(
            f"the weights of {spec.name} belong to its own stem, which images of {image_size} "
            f"pixels do not meet: pass --image-size {spec.pretrained_size}"
        )
    repo = spec.config.hf_hub_id or ""
    if not repo.startswith(HUB_OWNER) or spec.config.hf_hub_filename:
        raise ZooError(
            f"timm names no weights of its own format for {spec.name}: choose another tag, as in "
            f"timm:NAME.TAG, or pass {FILE_OPTION}"
        )
    return repo


def from_hub(spec: Neighbour, *, image_size: int) -> Weights:
    """The ImageNet weights that timm names for one of its networks, from the Hub or its cache.

    Raises:
        ZooError: `check_hub` refuses.
        MachineError: the Hub cannot be reached, and its cache does not hold the file.
    """
    repo = check_hub(spec, image_size=image_size)
    file, commit = _fetch(spec.name, repo)
    return Weights(from_file(file).tensors, f"hub:{repo}@{commit}", f"{WEIGHTS} of {repo}")


def adopt(network: nn.Module, weights: Weights, *, name: str) -> None:
    """Copy weights into `network`, which is called `name` in messages.

    Raises:
        ZooError: a tensor outside the classifier is missing, of another shape or left over; the
            message names the first.
    """
    own, given = network.state_dict(), weights.tensors
    heads = tuple(f"{head}." for head in classifiers(network))
    body = [key for key in own if not key.startswith(heads)]
    missing = [key for key in body if key not in given and not key.endswith(COUNTER)]
    reshaped = [key for key in body if key in given and given[key].shape != own[key].shape]
    extra = [key for key in sorted(given) if key not in own and not key.startswith(heads)]
    faults = {
        "has no": missing,
        "has another shape for": reshaped,
        "also holds": extra,
    }
    for fault, keys in faults.items():
        if keys:
            shapes = ""
            if keys is reshaped:
                shapes = f", {tuple(given[keys[0]].shape)} instead of {tuple(own[keys[0]].shape)}"
            raise ZooError(
                f"{weights.place} does not fit {name}: it {fault} {keys[0]}{shapes} "
                f"({len(missing)} tensors are missing, {len(reshaped)} of another shape, "
                f"{len(extra)} left over)"
            )
    head = [key for key in own if key.startswith(heads)]
    if all(key in given and given[key].shape == own[key].shape for key in head):
        body += head
    network.load_state_dict(own | {key: given[key] for key in body if key in given})


def classifiers(network: nn.Module) -> dict[str, nn.Module]:
    """The last layers of a network by name: what timm calls its classifier, else `head`.

    Empty where there is neither, or where it has no parameters.
    """
    ask = getattr(network, "get_classifier", None)
    found = ask() if callable(ask) else getattr(network, "head", None)
    modules = list(found) if isinstance(found, tuple | list) else [found]
    return {
        name: module
        for name, module in network.named_modules()
        if any(module is one for one in modules) and any(True for _ in module.parameters())
    }


def _fetch(name: str, repo: str) -> tuple[Path, str]:
    """The weights file of a repository and the commit that it is of."""
    try:
        return hub.newest(repo, WEIGHTS, most_bytes=MOST_BYTES)
    except MachineError as error:
        before = hub.cached(repo, WEIGHTS)
        if before is None:
            reason = first_line(error.__cause__ or error)
            raise MachineError(
                f"the weights of {name} cannot be fetched from the Hub ({reason}): "
                f"connect to the network, or pass {FILE_OPTION} with {WEIGHTS} of {repo}"
            ) from None
        return before
