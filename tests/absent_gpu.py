"""A stand-in for a GPU that is not there: an engine that is an ONNX file, which only it may run."""

import shutil
from pathlib import Path
from typing import ClassVar

from export.onnx_session import OnnxSession
from export.target import Tolerance
from export.to_onnx import OnnxTarget

REASON = "an engine runs on a GPU only"


class TargetOfAnAbsentGpu(OnnxTarget):
    name = "trt"
    suffix = ".engine"
    tolerance = {"fp32": Tolerance(logits=1e-3)}
    is_present = False
    built: ClassVar[Path]  # the file that every export leaves

    def export(self, model: object, example: object, path: Path, **_: object) -> None:
        shutil.copy(self.built, path)

    def pending(self, path: Path, *, device: str) -> str | None:
        return None if self.is_present else REASON

    def proxy(self, path: Path) -> OnnxSession:
        return OnnxSession(path)
