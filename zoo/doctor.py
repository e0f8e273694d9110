"""What works on this machine, what does not, and why: the checks behind `zoo-doctor`.

Each check is a function of facts that `zoo.machine` looked up, and returns one line.
"""

import sys
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from zoo import machine
from zoo.environment import cpu_flags, has_bf16_units
from zoo.errors import MachineError
from zoo.machine import Data, Failure, Gpu, Torch, rtx_has_code

Status = Literal["ok", "missing", "problem"]
_OK: Status = "ok"
_PROBLEM: Status = "problem"

LIBRARIES = (  # without which the main job stops; torch and ONNX Runtime have their own checks
    *("accelerate", "matplotlib", "numpy", "onnx", "onnxscript"),
    *("pillow", "pyarrow", "rich", "safetensors", "timm"),
)
ONNXRUNTIME = ("onnxruntime", "onnxruntime-gpu")
TENSORRT = ("tensorrt", "tensorrt_bindings", "tensorrt_rtx_bindings")  # modules
FREE_GIB_NEEDED = 0.5  # for the embedded data, a few runs and the compiler's cache


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """One line of the report."""

    name: str
    status: Status
    detail: str
    fix: str = ""  # a command for a clone of cifar-zoo, "" where nothing needs to be done
    is_needed: bool = False  # the main job cannot run unless this is ok


def diagnose() -> tuple[Check, ...]:
    """Check this machine, from the folder that the commands would write to.

    Note: imports torch, torchvision and ONNX Runtime, which takes seconds.
    """
    asked = machine.attempt(machine.torch_facts)
    torchvision = machine.attempt(machine.import_torchvision)
    torch = None if isinstance(asked, Failure) else asked
    driver_gpu = machine.driver_gpu()
    versions = machine.installed_versions((*LIBRARIES, *ONNXRUNTIME, "openvino", "torch"))
    return (
        check_python(sys.version_info[:3]),
        check_packages(machine.package_folders(), home=Path(__file__).resolve().parents[1]),
        check_torch(asked, torchvision, gpu=driver_gpu),
        check_gpu(torch, driver_gpu),
        check_precision(torch.gpu if torch else None, cpu_flags()),
        check_compiler(machine.compiler(), has_headers=machine.has_python_headers()),
        check_libraries(versions),
        check_onnxruntime(versions, machine.attempt(machine.onnxruntime_providers), torch),
        check_tensorrt(machine.importable(TENSORRT), driver_gpu),
        check_openvino(versions.get("openvino")),
        check_data(machine.attempt(machine.data_facts)),
        check_disk(machine.free_bytes(Path.cwd()) / 2**30),
    )


def is_ready(checks: Iterable[Check]) -> bool:
    """Whether the main job can run: train, export to ONNX, measure, report."""
    return all(check.status == "ok" for check in checks if check.is_needed)


def require_kernels(device: str) -> None:
    """Check that torch can use `device`, before a kernel fails to start.

    Raises:
        MachineError: `device` is a GPU, and torch finds none or has no code for it.
    """
    if not device.startswith("cuda"):
        return
    torch = machine.torch_facts(int(device.partition(":")[2] or 0))
    if torch.gpu is None:
        raise MachineError(f"torch {torch.version} finds no GPU {device!r}: zoo-doctor says why")
    fault = kernel_fault(torch, torch.gpu)
    if fault:
        raise MachineError(f"{fault}: in a clone of cifar-zoo run {_remedy(torch.gpu)}")


def kernel_fault(torch: Torch, gpu: Gpu) -> str | None:
    """Say that torch holds no code for this GPU, None where it does."""
    if any(_runs_on(architecture, gpu.capability) for architecture in torch.architectures):
        return None
    return f"torch {torch.version} has no code for the {gpu}"


def stack_for(gpu: Gpu | None) -> str:
    """The extra whose torch and ONNX Runtime suit this GPU."""
    if gpu is None or gpu.capability < (7, 0):
        return "cpu"
    return "v100" if gpu.capability < (7, 5) else "gpu"


def install(extra: str) -> str:
    """The command that installs an extra, for a clone."""
    return f"pip install '.[{extra}]'"


def _remedy(gpu: Gpu) -> str:
    """Install the torch that has code for a GPU, or hide one that is too old for any."""
    stack = stack_for(gpu)
    return "export CUDA_VISIBLE_DEVICES=" if stack == "cpu" else install(stack)


# ---- the checks, one line of the report each -------------------------------------------------


def check_python(version: tuple[int, ...]) -> Check:
    """The interpreter lies in the range of `requires-python`."""
    given, is_fine = ".".join(map(str, version)), (3, 11) <= version < (3, 15)
    return Check(
        name="python",
        status="ok" if is_fine else "problem",
        detail=given if is_fine else f"{given}: cifar-zoo needs 3.11 to 3.14",
        fix="" if is_fine else "make setup PYTHON=python3.13",
        is_needed=True,
    )


def check_packages(folders: Mapping[str, Path | None], *, home: Path) -> Check:
    """Our packages come from one folder, and nobody's own `training` in place of ours."""
    missing = [name for name, folder in folders.items() if folder is None]
    foreign = [folder / name for name, folder in folders.items() if folder and folder != home]
    if missing:
        detail, fix = f"not found: {', '.join(missing)}", "pip install ."
    elif foreign:
        detail = f"{foreign[0]} shadows cifar-zoo's own package"
        fix = f"mv {foreign[0]} {foreign[0]}_renamed"
    else:
        return Check(name="packages", status="ok", detail=f"all from {home}", is_needed=True)
    return Check(name="packages", status="problem", detail=detail, fix=fix, is_needed=True)


def check_torch(torch: Torch | Failure, torchvision: Failure | None, *, gpu: Gpu | None) -> Check:
    """Both torch and torchvision can be imported."""
    if isinstance(torch, Failure):
        status, detail = _PROBLEM, f"torch cannot be imported: {torch.reason}"
    elif torchvision:
        status, detail = _PROBLEM, f"torchvision cannot be imported: {torchvision.reason}"
    else:
        build = f"built with CUDA {torch.cuda}" if torch.cuda else "built without CUDA"
        status, detail = _OK, f"{torch.version}, {build}"
    fix = install(stack_for(gpu)) if status == _PROBLEM else ""
    return Check(name="torch", status=status, detail=detail, fix=fix, is_needed=True)


def check_gpu(torch: Torch | None, driver_gpu: Gpu | None) -> Check:
    """The GPU, if there is one, can be used by torch."""
    if torch is None or (torch.gpu is None and driver_gpu is None):
        detail = str(driver_gpu) if driver_gpu else "no NVIDIA GPU: the CPU does the work"
        return Check(name="gpu", status="missing", detail=detail)
    if torch.gpu:
        fault = kernel_fault(torch, torch.gpu)
        return Check(
            name="gpu",
            status="problem" if fault else "ok",
            detail=fault or str(torch.gpu),
            fix=_remedy(torch.gpu) if fault else "",
            is_needed=True,  # a GPU that torch lists is the one that the commands choose
        )
    if torch.cuda is None:
        detail = f"torch {torch.version} is built without CUDA and leaves the {driver_gpu} unused"
        return Check(
            name="gpu", status="problem", detail=detail, fix=install(stack_for(driver_gpu))
        )
    reason = torch.cuda_fault or "is the driver too old, or does CUDA_VISIBLE_DEVICES hide it?"
    detail = f"torch {torch.version} (CUDA {torch.cuda}) cannot use the {driver_gpu}: {reason}"
    return Check(name="gpu", status="problem", detail=detail, fix="nvidia-smi")


def check_precision(gpu: Gpu | None, flags: tuple[str, ...]) -> Check:
    """The number format that training chooses by itself."""
    if gpu is None:
        has_units = has_bf16_units(flags)
        detail = (
            "bf16: the CPU has units for it" if has_units else "fp32: the CPU has no bf16 units"
        )
    elif gpu.capability >= (8, 0):
        detail = "bf16: compute capability 8.0 or later"
    elif gpu.capability >= (7, 0):
        detail = "fp16 with loss scaling: no bf16 units before compute capability 8.0"
    else:
        detail = "fp32: no fp16 units before compute capability 7.0"
    return Check(name="precision", status="ok", detail=detail)


def check_compiler(compiler: str | None, *, has_headers: bool) -> Check:
    """What `--compile` and the backend `compile` need on a CPU."""
    if compiler is None:
        detail, fix = "no C++ compiler, so no --compile on a CPU", "apt-get install g++"
    elif not has_headers:
        detail = f"{compiler}, but no Python.h, so no --compile on a CPU"
        fix = "apt-get install python3-dev"
    else:
        return Check(name="compiler", status="ok", detail=compiler)
    return Check(name="compiler", status="missing", detail=detail, fix=fix)


def check_libraries(versions: Mapping[str, str]) -> Check:
    """The other packages of the main job are installed."""
    missing = [name for name in LIBRARIES if name not in versions]
    present = ", ".join(f"{name} {versions[name]}" for name in LIBRARIES if name in versions)
    return Check(
        name="libraries",
        status="missing" if missing else "ok",
        detail=f"not installed: {', '.join(missing)}" if missing else present,
        fix="pip install ." if missing else "",
        is_needed=True,
    )


def check_onnxruntime(
    versions: Mapping[str, str], providers: tuple[str, ...] | Failure, torch: Torch | None
) -> Check:
    """Exactly one ONNX Runtime is installed, and it is the one for this GPU."""
    gpu = torch.gpu if torch else None
    extra = stack_for(gpu)
    found = [f"{name} {versions[name]}" for name in ONNXRUNTIME if name in versions]
    reinstall = f"pip uninstall -y {' '.join(ONNXRUNTIME)}; {install(extra)}"
    if not found:
        return Check(
            name="onnxruntime",
            status="missing",
            detail="not installed: an export cannot be checked",
            fix=install(extra),
            is_needed=True,
        )
    if isinstance(providers, Failure):
        return Check(
            name="onnxruntime",
            status="problem",
            detail=f"{found[0]} cannot be imported: {providers.reason}",
            fix=reinstall,
            is_needed=True,
        )
    names = ", ".join(name.removesuffix("ExecutionProvider") for name in providers)
    detail = f"{found[0]} with {names}"
    fault = ""
    if len(found) > 1:
        fault = f"{' and '.join(found)} fill the same folder: only the last one installed works"
    elif gpu and "CUDAExecutionProvider" not in providers:
        fault = f"{detail}: the {gpu.name} stays unused"
    elif gpu and torch and torch.cuda and "onnxruntime-gpu" in versions:
        cuda = _cuda_of(versions["onnxruntime-gpu"])
        if cuda != torch.cuda.partition(".")[0]:
            fault = f"{found[0]} is built for CUDA {cuda}, torch for CUDA {torch.cuda}"
    return Check(
        name="onnxruntime",
        status="problem" if fault else "ok",
        detail=fault or detail,
        fix=reinstall if fault else "",
    )


def check_tensorrt(modules: Collection[str], gpu: Gpu | None) -> Check:
    """Which flavour of TensorRT is there; an engine can be built without a GPU, but not run."""
    fix = install("v100-trt" if stack_for(gpu) == "v100" else "trt" if gpu else "trt-rtx")
    if not modules:
        return Check(name="tensorrt", status="missing", detail="not installed", fix=fix)
    has_rtx = "tensorrt_rtx_bindings" in modules
    detail = f"{'TensorRT for RTX' if has_rtx else 'TensorRT'} ({', '.join(modules)})"
    if gpu is None:
        detail += "; without a GPU it builds engines and runs none"
    elif has_rtx and len(modules) == 1 and not rtx_has_code(gpu.capability):
        detail += f" has no code for the {gpu}"
        return Check(name="tensorrt", status="problem", detail=detail, fix=fix)
    return Check(name="tensorrt", status="ok", detail=detail)


def check_openvino(version: str | None) -> Check:
    """OpenVINO, an optional backend for CPUs."""
    if version is None:
        detail, fix = "not installed", install("openvino")
        return Check(name="openvino", status="missing", detail=detail, fix=fix)
    return Check(name="openvino", status="ok", detail=version)


def check_data(data: Data | Failure) -> Check:
    """CIFAR-100 is here, or only its embedded subset is."""
    if isinstance(data, Failure):
        status, detail, fix = _PROBLEM, f"zoo.data fails: {data.reason}", "pip install ."
    elif not data.has_embedded:
        status, detail, fix = _PROBLEM, "the embedded cifar100-mini is gone", "pip install ."
    elif data.given and data.given_has_cifar100:
        status, detail, fix = _OK, f"cifar100 in {data.given} (ZOO_DATA), cifar100-mini", ""
    elif data.given:
        detail = f"ZOO_DATA is {data.given}, which has no cifar100"
        status, fix = _PROBLEM, "unset ZOO_DATA"
    elif data.cache_has_cifar100:
        status, detail, fix = _OK, f"cifar100 in {data.cache}, cifar100-mini", ""
    else:
        detail = "cifar100-mini; cifar100 is downloaded when it is first asked for"
        return Check(name="data", status="missing", detail=detail, fix="export ZOO_DATA=FOLDER")
    return Check(name="data", status=status, detail=detail, fix=fix, is_needed=True)


def check_disk(free_gib: float) -> Check:
    """There is room for runs in the working folder."""
    is_fine = free_gib >= FREE_GIB_NEEDED
    return Check(
        name="disk",
        status="ok" if is_fine else "problem",
        detail=f"{free_gib:.1f} GiB free here" + ("" if is_fine else f", {FREE_GIB_NEEDED} needed"),
        fix="" if is_fine else "cd FOLDER",
        is_needed=True,
    )


def _runs_on(architecture: str, capability: tuple[int, int]) -> bool:
    """Machine code runs on its major version from its minor on; PTX on everything later."""
    kind, _, number = architecture.partition("_")
    if kind not in ("sm", "compute"):  # not NVIDIA's: nothing to compare
        return True
    digits = number.rstrip("af")
    built = (int(digits[:-1]), int(digits[-1]))
    if number.endswith("a"):  # for this very chip
        return built == capability
    if kind == "compute" and number == digits:
        return built <= capability
    return built[0] == capability[0] and built[1] <= capability[1]


def _cuda_of(onnxruntime_gpu: str) -> str:
    """Major CUDA release that a version of onnxruntime-gpu is built for."""
    major, minor = onnxruntime_gpu.split(".")[:2]
    return "13" if (int(major), int(minor)) >= (1, 27) else "12"
