"""Say what this machine is, as one line of JSON: run as a command, so that torch ends with it."""

import hashlib
import json
import sys
from dataclasses import asdict
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

from profiling.evidence import Machine
from zoo.environment import capture, git_commit

PACKAGES = ("zoo", "training", "export", "profiling")
MODULES = (
    *("accelerate", "fvcore", "huggingface_hub", "matplotlib", "numpy", "onnx", "onnxruntime"),
    *("onnxscript", "openvino", "PIL", "pynvml", "pytest", "pytest_benchmark", "rich"),
    *("safetensors", "tensorboard", "tensorrt", "tensorrt_bindings", "tensorrt_rtx_bindings"),
    *("timm", "torch", "torchvision", "triton"),
)
ONNX_CUDA = "onnxruntime.cuda"  # its provider for NVIDIA GPUs


def look(device: str) -> Machine:
    """The facts; `device` is cpu, cuda or auto."""
    import torch

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    root = Path(__file__).resolve().parents[3]
    names = metadata.packages_distributions()
    missing = [name for name in MODULES if find_spec(name) is None]
    return Machine(
        environment=capture(device),
        packages={
            name: metadata.version(names.get(name, [name])[0])
            for name in MODULES
            if name not in missing
        },
        missing=(*missing, *([] if has_onnx_cuda() else [ONNX_CUDA])),
        commit=git_commit(root),
        sources_sha256=sources_digest(root),
        is_rehearsal=False,
    )


def has_onnx_cuda() -> bool:
    """Whether ONNX Runtime was built with a provider for NVIDIA GPUs."""
    try:
        import onnxruntime
    except ImportError:
        return False
    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def sources_digest(root: Path) -> str:
    """One digest of all Python files of our packages."""
    files = sorted(file for name in PACKAGES for file in (root / name).rglob("*.py"))
    lines = [
        f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.relative_to(root).as_posix()}\n"
        for file in files
    ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


if __name__ == "__main__":
    found = look(sys.argv[1])
    print(json.dumps(asdict(found) | {"environment": found.environment.to_json()}))
