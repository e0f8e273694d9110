"""What this machine has: facts for `zoo.doctor`, looked up without judging them."""

import os
import shutil
import subprocess
import sys
import sysconfig
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")
PACKAGES = ("zoo", "training", "export", "profiling")


@dataclass(frozen=True, kw_only=True, slots=True)
class Gpu:
    """An NVIDIA GPU."""

    name: str
    capability: tuple[int, int]  # compute capability

    def __str__(self) -> str:
        return f"{self.name} (compute capability {self.capability[0]}.{self.capability[1]})"


# Of TensorRT-RTX: it refuses 9.0 in so many words (1.7, tried on an H200).
RTX_CAPABILITIES = ((7, 5), (8, 0), (8, 6), (8, 9))
RTX_FROM = (12, 0)  # and all after


def rtx_has_code(capability: tuple[int, int]) -> bool:
    """Whether TensorRT-RTX runs on GPUs of a compute capability."""
    return capability in RTX_CAPABILITIES or capability >= RTX_FROM


@dataclass(frozen=True, kw_only=True, slots=True)
class Torch:
    """What torch says of itself and of the GPU."""

    version: str
    cuda: str | None  # the CUDA release that it was built with
    architectures: tuple[str, ...]  # that it holds code for: "sm_90", "compute_120"
    gpu: Gpu | None  # None: it can use none
    cuda_fault: str = ""  # its own words where CUDA did not start


@dataclass(frozen=True, kw_only=True, slots=True)
class Failure:
    """Why something that is installed cannot be imported or asked."""

    reason: str  # one line


def attempt(look: Callable[[], T]) -> T | Failure:
    """Call `look`; a package may fail in any way while it is imported."""
    try:
        return look()
    except Exception as error:
        lines = str(error).strip().splitlines() or [""]
        return Failure(reason=f"{type(error).__name__}: {lines[0]}")


def torch_facts(index: int = 0) -> Torch:
    """Ask torch about itself and the GPU with this index."""
    import torch

    with warnings.catch_warnings(record=True) as caught:  # torch warns of what it cannot use
        warnings.simplefilter("always")
        gpu = None
        if torch.cuda.is_available() and index < torch.cuda.device_count():
            major, minor = torch.cuda.get_device_capability(index)
            gpu = Gpu(name=torch.cuda.get_device_name(index), capability=(major, minor))
    return Torch(
        version=str(torch.__version__),
        cuda=torch.version.cuda,
        architectures=tuple(torch.cuda.get_arch_list()),
        gpu=gpu,
        cuda_fault=str(caught[0].message).splitlines()[0] if caught and not gpu else "",
    )


def import_torchvision() -> None:
    """Import torchvision, which fails beside a torch of another build."""
    import_module("torchvision")


def onnxruntime_providers() -> tuple[str, ...]:
    """Execution providers that the installed ONNX Runtime was built with."""
    import onnxruntime

    return tuple(onnxruntime.get_available_providers())


def driver_gpu() -> Gpu | None:
    """The oldest GPU that the driver lists, whether or not torch can use it."""
    query = ("nvidia-smi", "--query-gpu=name,compute_cap", "--format=csv,noheader")
    try:
        answer = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return parse_gpus(answer.stdout)


def parse_gpus(text: str) -> Gpu | None:
    """Read lines such as "Tesla V100-SXM2-16GB, 7.0"; the lowest capability wins."""
    found = []
    for line in text.splitlines():
        name, _, capability = line.rpartition(",")
        major, _, minor = capability.strip().partition(".")
        if name and major.isdecimal() and minor.isdecimal():
            found.append(Gpu(name=name.strip(), capability=(int(major), int(minor))))
    return min(found, key=lambda gpu: gpu.capability, default=None)


def package_folders() -> dict[str, Path | None]:
    """The folder that each of our packages would be imported from, None where it is not found."""
    return {package: _parent(package) for package in PACKAGES}


def _parent(package: str) -> Path | None:
    spec = find_spec(package)
    if spec is None:
        return None
    folders = list(spec.submodule_search_locations or ())
    return Path(folders[0] if folders else spec.origin or package).resolve().parent


def installed_versions(names: Iterable[str]) -> dict[str, str]:
    """Versions of those distributions of `names` that are installed."""
    versions = {}
    for name in names:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def importable(modules: Iterable[str]) -> tuple[str, ...]:
    """Those of `modules` that exist, without importing them."""
    return tuple(name for name in modules if find_spec(name))


def compiler() -> str | None:
    """The C++ compiler that torch.compile calls: CXX, else g++ (clang++ on macOS)."""
    default = "clang++" if sys.platform == "darwin" else "g++"
    return shutil.which(os.environ.get("CXX") or default)


def has_python_headers() -> bool:
    """Whether Python.h is installed, which the code that torch.compile writes includes."""
    return (Path(sysconfig.get_path("include")) / "Python.h").is_file()


def free_bytes(folder: Path) -> int:
    """Bytes that may still be written to the disk of `folder`."""
    return shutil.disk_usage(folder).free


@dataclass(frozen=True, kw_only=True, slots=True)
class Data:
    """Where the data sets lie, by the names of their files; nothing is read or verified."""

    given: Path | None  # ZOO_DATA
    given_has_cifar100: bool
    cache: Path
    cache_has_cifar100: bool
    has_embedded: bool  # cifar100-mini


def data_facts() -> Data:
    """Look for CIFAR-100 where `zoo.data` would."""
    from zoo import cifar100_mini
    from zoo.data_formats import holds
    from zoo.data_sources import LAYOUTS, cache_root, is_complete

    layout = LAYOUTS["cifar100"]
    variable = os.environ.get("ZOO_DATA")
    given = Path(variable).expanduser() if variable else None
    cache = cache_root() / layout.name
    return Data(
        given=given,
        given_has_cifar100=given is not None and holds(given, layout),
        cache=cache,
        cache_has_cifar100=is_complete(cache),
        has_embedded=(Path(cifar100_mini.__file__).parent / cifar100_mini.ARCHIVE).is_file(),
    )
