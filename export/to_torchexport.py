"""torch.export: the model as a graph of torch's own operators, run without the model's code."""

import io
import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.export.passes import move_to_device_pass

from export.batch import check_batch
from export.program import lowered, quiet
from export.target import FLOATS, ExportOptions
from zoo.doctor import require_kernels
from zoo.errors import ArtifactError, first_line
from zoo.session import tf32

METADATA = "cifar_zoo.json"  # among the archive's extra files
# All that a program's archive holds below its one folder. Lower case, for torch's reader finds
# names in any case.
PARTS = re.compile(
    r"(\.?[a-z_]+|\.data/[a-z_]+|extra/[a-z_]+\.json|models/model\.json"
    r"|data/(weights|constants)/(model_(weights|constants)_config\.json|(weight|tensor)_[0-9]+)"
    r"|data/sample_inputs/model\.pt)"
)


class TorchExportTarget:
    """One .export.pt2 file: the graph before any compiler has touched it, with its weights.

    It is what other tools of torch start from, and needs torch alone, not the code of the model.
    """

    name = "torchexport"
    suffix = ".export.pt2"
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
        """Write the file; return how many operators it holds.

        Raises:
            MachineError: torch.export cannot trace the model.
        """
        program = lowered(model, example, precision=precision)
        save_program(program, path, {**metadata, "precision": precision})
        calls = [node for node in program.graph.nodes if node.op == "call_function"]
        return {"operators": len(calls)}

    def open(self, path: Path, *, device: str) -> "TorchExportSession":
        """Run a file that its manifest vouches for: the graph may name any function of torch."""
        return TorchExportSession(path, device=device)

    def pending(self, path: Path, *, device: str) -> str | None:
        """Nothing: where torch is, the file runs."""
        return None

    def versions(self) -> dict[str, str]:
        """Of torch, which does all of it."""
        return {"torch": str(torch.__version__)}


class TorchExportSession:
    """A torch.export program in eager mode: operator by operator, nothing compiled or fused.

    Shapes:
        run: (B, 3, H, W) float32 of the size it was written for -> (B, K) float32.

    Note:
        Of an archive only plain tensors and JSON are read, never a pickle of anything else.
        The GPU path is not verified: no machine with a GPU has run it yet.

    Raises:
        ArtifactError: the file is damaged, holds a pickle, or is no program of one image batch.
        MachineError: `device` is a GPU that torch cannot use.
    """

    backend = "torchexport"

    def __init__(self, path: Path, *, device: str = "cpu") -> None:
        require_kernels(device)
        self.device = device
        self.runtime = f"torch {torch.__version__}"
        program, metadata = load_program(path)
        self.precision = metadata.get("precision", "fp32")
        self.input_shape = _input_shape(program, path)  # (batch, C, H, W)
        if device != "cpu":
            program = move_to_device_pass(program, device)
        self._path = path
        self._module = program.module()

    def run(self, images: Tensor) -> Tensor:
        """Logits of one batch.

        Raises:
            MachineError: the file does not take this shape.
        """
        check_batch(images, self.input_shape, self._path)
        with torch.inference_mode(), tf32(allowed=False):
            logits: Tensor = self._module(images.contiguous())
        return logits

    def synchronize(self) -> None:
        """Wait for the GPU, where there is one."""
        if self.device.startswith("cuda"):
            torch.cuda.synchronize(self.device)


def save_program(
    program: torch.export.ExportedProgram, path: Path, metadata: Mapping[str, str]
) -> None:
    """Write a program and its metadata as one archive."""
    archive = io.BytesIO()  # torch's own writer hides what the disk says
    with quiet():
        torch.export.save(program, archive, extra_files={METADATA: json.dumps(dict(metadata))})
    path.write_bytes(archive.getbuffer())


def load_program(path: Path) -> tuple[torch.export.ExportedProgram, dict[str, str]]:
    """Read a program and its metadata, but no pickle.

    Raises:
        ArtifactError: the file is damaged, or holds one.
    """
    content = path.read_bytes()
    _refuse_pickles(content, path)
    extra: dict[str, Any] = {METADATA: ""}
    try:
        with quiet():
            program = torch.export.load(io.BytesIO(content), extra_files=extra)
        metadata = json.loads(extra[METADATA] or "{}")
    except Exception as reason:  # of torch's many kinds
        raise ArtifactError(f"torch cannot read {path}: {first_line(reason)}") from None
    return program, metadata


def _refuse_pickles(content: bytes, path: Path) -> None:
    """torch.export.load would unpickle what an archive asks for: look before it does."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            names = archive.namelist()
            tables = [json.loads(archive.read(n)) for n in names if n.endswith("_config.json")]
            samples = [archive.read(n) for n in names if "/sample_inputs/" in n]
        payloads = [payload for table in tables for payload in table["config"].values()]
        pickled = any(
            payload["use_pickle"] or not payload["path_name"].startswith(("weight_", "tensor_"))
            for payload in payloads
        )
    except Exception as reason:  # zipfile's, zlib's and JSON's
        raise ArtifactError(
            f"{path} is no torch.export program, or it is damaged ({first_line(reason)})"
        ) from None
    legacy = len(tables) != 2 or any("/models/" in n and n.endswith(".pt") for n in names)
    others = [n for n in names if n.endswith((".pt", ".pkl")) and "/sample_inputs/" not in n]
    if pickled or legacy or others or len(set(names)) < len(names):
        raise _pickle(path)
    folder = names[0].partition("/")[0]
    for name in names:
        if not (name.startswith(f"{folder}/") and PARTS.fullmatch(name[len(folder) + 1 :])):
            raise ArtifactError(f"{path} holds {name!r}, which is no part of a file of zoo-export")
    for sample in samples:
        try:
            torch.load(io.BytesIO(sample), weights_only=True)
        except Exception:  # pickle's or torch's
            raise _pickle(path) from None


def _pickle(path: Path) -> ArtifactError:
    return ArtifactError(
        f"{path} holds a pickle, which could run any code: a file of zoo-export has none"
    )


def _input_shape(program: torch.export.ExportedProgram, path: Path) -> tuple[str, int, int, int]:
    nodes = {node.name: node for node in program.graph.nodes}
    inputs = [nodes[str(name)].meta["val"] for name in program.graph_signature.user_inputs]
    shapes = [tuple(value.shape) for value in inputs]
    if len(shapes) != 1 or len(shapes[0]) != 4 or isinstance(shapes[0][0], int):
        found = ", ".join(str(shape) for shape in shapes)
        raise ArtifactError(
            f"{path} should take one batch of images, (B, C, H, W) with a free B; it takes {found}"
        )
    channels, height, width = (int(size) for size in shapes[0][1:])
    return ("batch", channels, height, width)
