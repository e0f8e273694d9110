"""AOTInductor: the model compiled to machine code, run by torch without a compiler."""

import io
import json
import platform
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from export.artifact import command_again
from export.batch import check_batch
from export.program import lowered, quiet
from export.target import FLOATS, ExportOptions
from zoo.doctor import require_kernels
from zoo.errors import ArtifactError, MachineError, OtherDeviceError, first_line
from zoo.machine import compiler
from zoo.session import tf32

# Processor flags that a C++ compiler told to build for this very machine may choose its code by.
CODE_FLAGS = re.compile(
    r"(avx|amx|sse|ssse|fma|f16c|bmi|abm|adx|movbe|popcnt|gfni|vaes|vpclmul|asimd|sve|bf16|i8mm)"
)


class AotInductorTarget:
    """One .aoti.pt2 file: machine code for one kind of CPU or GPU, weights inside.

    The code is tied to the instruction sets of the CPU, or the compute capability of the GPU, that
    it was compiled on, and to the release of torch. The number of threads is not compiled in.
    """

    name = "aoti"
    suffix = ".aoti.pt2"
    tolerance = FLOATS

    def export(
        self,
        model: nn.Module,
        example: Tensor,
        path: Path,
        *,
        precision: str,
        metadata: Mapping[str, str],
        options: ExportOptions,
    ) -> Mapping[str, Any]:
        """Compile for `options.device` and write the file; return what it is tied to.

        Raises:
            MachineError: there is no C++ compiler, no such GPU, or the model cannot be compiled.
        """
        device = options.device
        require_kernels(device)
        if compiler() is None:
            raise MachineError(
                "--to aoti needs a C++ compiler and none was found: install g++ "
                "(or point CXX at one)"
            )
        program = lowered(model, example, precision=precision, device=device, fold=True)
        shape = [int(size) for size in example.shape[1:]]
        facts = {"precision": precision, "image_shape": json.dumps(shape), **_here(device)}
        compile_package(program, path, {**metadata, **facts})
        return facts

    def open(self, path: Path, *, device: str) -> "AotInductorSession":
        """Run a file that its manifest vouches for: it is machine code."""
        return AotInductorSession(path, device=device)

    def pending(self, path: Path, *, device: str) -> str | None:
        """What keeps this machine from running the file."""
        try:
            require_kernels(device)
        except MachineError as error:
            return str(error)
        return _obstacle(path, package_facts(path), device)

    def versions(self) -> dict[str, str]:
        """Of torch, which does all of it but call the C++ compiler."""
        return {"torch": str(torch.__version__)}


class AotInductorSession:
    """Compiled code on the CPU or on one NVIDIA GPU, with TF32 off.

    Shapes:
        run: (B, 3, H, W) float32 of the size it was compiled for -> (B, K) float32.

    Note:
        The GPU path is not verified: no machine with a GPU has run it yet.

    Raises:
        ArtifactError: the file is damaged, or was not written by zoo-export.
        MachineError: it was compiled for another kind of machine or another torch.
    """

    backend = "aoti"

    def __init__(self, path: Path, *, device: str = "cpu") -> None:
        require_kernels(device)
        facts = package_facts(path)
        obstacle = _obstacle(path, facts, device)
        if obstacle is not None:
            is_other = facts["compiled_for"] != device.partition(":")[0]
            kind = OtherDeviceError if is_other else MachineError
            raise kind(f"{path} does not run here: {obstacle}")
        self.device = device
        self.precision = facts["precision"]
        self.runtime = f"torch {torch.__version__} AOTInductor"
        try:
            channels, height, width = json.loads(facts["image_shape"])
        except (KeyError, ValueError, TypeError):
            raise _foreign(path) from None
        self.input_shape = ("batch", channels, height, width)
        self._path = path
        index = torch.device(device).index
        # Not aoti_load_package: where the same archive holds a torch.export program, that one
        # unpickles it, and it looks for a C++ compiler, which running the code does not need.
        loader = torch._C._aoti.AOTIModelPackageLoader
        try:
            self._package = loader(str(path), "model", False, 1, -1 if index is None else index)
        except RuntimeError as reason:
            raise ArtifactError(f"torch cannot load {path}: {first_line(reason)}") from None

    def run(self, images: Tensor) -> Tensor:
        """Logits of one batch.

        Raises:
            MachineError: the file does not take this shape; its code does not check that itself,
                and would read beyond the images.
        """
        check_batch(images, self.input_shape, self._path)
        with torch.inference_mode(), tf32(allowed=False):
            (logits,) = self._package.run([images.contiguous()])
        found: Tensor = logits
        return found

    def synchronize(self) -> None:
        """Wait for the GPU, where there is one."""
        if self.device.startswith("cuda"):
            torch.cuda.synchronize(self.device)


def compile_package(
    program: torch.export.ExportedProgram, path: Path, metadata: Mapping[str, str]
) -> None:
    """Compile a program with its weights as constants.

    Raises:
        MachineError: AOTInductor cannot compile it.
    """
    settings = {
        "freezing": True,
        "cpp.dynamic_threads": True,  # otherwise today's number of threads is compiled in
        "aot_inductor.metadata": dict(metadata),
    }
    archive = io.BytesIO()  # torch's own writer hides what the disk says
    try:
        with quiet(), tf32(allowed=False), torch.no_grad():
            torch._inductor.aoti_compile_and_package(
                program, package_path=archive, inductor_configs=settings
            )
    except Exception as reason:  # of torch's many kinds
        raise MachineError(f"AOTInductor cannot compile this model: {_said(reason)}") from None
    path.write_bytes(archive.getbuffer())


def _said(reason: Exception) -> str:
    """What the C++ compiler says stands below torch's word that it failed."""
    lines = (line.strip() for line in str(reason).splitlines())
    return next((line for line in lines if "error:" in line), first_line(reason))


def package_facts(path: Path) -> dict[str, str]:
    """What a package says of itself; no code of it runs.

    Raises:
        ArtifactError: it is damaged, or was not written by zoo-export.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = [n for n in archive.namelist() if n.endswith("_metadata.json")]
            facts = {str(k): str(v) for k, v in json.loads(archive.read(names[0])).items()}
    except Exception:  # zipfile's, zlib's and JSON's
        raise ArtifactError(f"{path} is no AOTInductor package, or it is damaged") from None
    if not {"precision", "image_shape", "compiled_for", "torch_release"} <= facts.keys():
        raise _foreign(path)
    return facts


def _foreign(path: Path) -> ArtifactError:
    return ArtifactError(f"{path} was not written by zoo-export: it does not say what it runs on")


def _here(device: str) -> dict[str, str]:
    """What code that is compiled now is tied to."""
    facts = {
        "compiled_for": "cpu",
        "torch_release": _release(),
        "machine": platform.machine(),
        "instruction_sets": " ".join(_instruction_sets()),
    }
    if device.startswith("cuda"):
        capability = "{}.{}".format(*torch.cuda.get_device_capability(device))
        facts |= {"compiled_for": "cuda", "compute_capability": capability}
    return facts


def _obstacle(path: Path, facts: Mapping[str, str], device: str) -> str | None:
    """Why code with these facts does not run on `device`, and what to do."""
    kind = device.partition(":")[0]
    command = command_again(path, "aoti", device=device, precision=facts.get("precision"))
    again = f"write it again on this machine with {command}"
    if (other := facts["compiled_for"]) != kind:
        return f"it was compiled for {other}, not for {kind}: use --device {other}, or {again}"
    if facts["torch_release"] != _release():
        return f"it was compiled by torch {facts['torch_release']}, this is {_release()}: {again}"
    if facts.get("machine") != platform.machine():
        return f"it was compiled for {facts.get('machine')}, not {platform.machine()}: {again}"
    lacking = sorted(set(facts.get("instruction_sets", "").split()) - set(_instruction_sets()))
    if lacking:
        return f"it was compiled for a CPU with {', '.join(lacking)}, which this one lacks: {again}"
    if kind == "cuda":
        here = "{}.{}".format(*torch.cuda.get_device_capability(device))
        if facts.get("compute_capability") != here:
            return (
                f"it was compiled for compute capability {facts.get('compute_capability')}, "
                f"this GPU has {here}: {again}"
            )
    return None


def _release() -> str:
    return ".".join(str(torch.__version__).split(".")[:2])


def _instruction_sets() -> list[str]:
    """Of this CPU, sorted; none where the system does not tell."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return []
    flags = re.search(r"^(?:flags|Features)\s*:(.*)$", text, re.MULTILINE)
    return sorted(flag for flag in (flags[1] if flags else "").split() if CODE_FLAGS.match(flag))
