"""Options of TensorRT itself, which only a GPU builds with: what the builder is told."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from export.target import ExportOptions
from export.tensorrt_api import Flavor, MessageLog
from export.tensorrt_build import build_engine
from export.to_tensorrt import TensorRtTarget
from zoo.errors import ArtifactError, MachineError, ZooError
from zoo.machine import Gpu

A100 = Gpu(name="NVIDIA A100", capability=(8, 0))


class Logger:
    Severity = SimpleNamespace(ERROR=0, INTERNAL_ERROR=1, VERBOSE=2)


class CacheWithoutGpu:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> bytes:
        return self.content + b" and new"


class ConfigWithoutGpu:
    """Notes what it is told; a timing cache of another GPU is one that says so."""

    def __init__(self) -> None:
        self.flags: list[str] = []
        self.features: list[str] = []
        self.hardware_compatibility_level: str | None = None
        self.cache: CacheWithoutGpu | None = None

    def clear_flag(self, flag: str) -> None:
        pass

    def set_flag(self, flag: str) -> None:
        self.flags.append(flag)

    def set_preview_feature(self, feature: str, enable: bool) -> None:
        assert enable
        self.features.append(feature)

    def add_optimization_profile(self, profile: object) -> None:
        pass

    def create_timing_cache(self, content: bytes) -> CacheWithoutGpu:
        return CacheWithoutGpu(content)

    def set_timing_cache(self, cache: CacheWithoutGpu, ignore_mismatch: bool) -> bool:
        assert not ignore_mismatch
        self.cache = cache
        return b"of another GPU" not in cache.content


class TensorRtWithoutGpu:
    """Stands in for TensorRT and its builder, which take a GPU: it builds three bytes."""

    __version__ = "11.4.0.106"
    ILogger = Logger
    NetworkDefinitionCreationFlag = SimpleNamespace(STRONGLY_TYPED=1)
    BuilderFlag = SimpleNamespace(TF32="TF32", VERSION_COMPATIBLE="VERSION_COMPATIBLE")
    PreviewFeature = SimpleNamespace(ALIASED_PLUGIN_IO_10_03="ALIASED")
    ProfilingVerbosity = SimpleNamespace(DETAILED="DETAILED")
    HardwareCompatibilityLevel = SimpleNamespace(AMPERE_PLUS="AMPERE_PLUS")

    def __init__(self, plan: bytes | None = b"vvv") -> None:
        self.plan = plan
        self.config = ConfigWithoutGpu()

    def Builder(self, logger: object) -> "TensorRtWithoutGpu":
        return self

    def create_network(self, flags: int) -> Any:
        images = SimpleNamespace(name="images", shape=(-1, 3, 32, 32))
        return SimpleNamespace(num_layers=0, get_input=lambda index: images)

    def OnnxParser(self, network: object, logger: object) -> Any:
        return SimpleNamespace(parse=lambda graph: True)

    def create_builder_config(self) -> ConfigWithoutGpu:
        return self.config

    def create_optimization_profile(self) -> Any:
        return SimpleNamespace(set_shape=lambda name, *shapes: None)

    def build_serialized_network(self, network: object, config: object) -> bytes | None:
        return self.plan


def built(trt: TensorRtWithoutGpu, monkeypatch: pytest.MonkeyPatch, **options: Any) -> str:
    """Build with these options; what the engine runs on."""
    monkeypatch.setattr("export.tensorrt_build.message_log", MessageLog)
    flavor = Flavor(name="tensorrt", trt=trt)
    return build_engine(b"", flavor, ExportOptions(**options), name="x fp32", gpu=A100).runs_on


def test_an_engine_is_for_the_gpu_that_builds_it(monkeypatch: pytest.MonkeyPatch) -> None:
    trt = TensorRtWithoutGpu()

    assert built(trt, monkeypatch) == "NVIDIA A100 (compute capability 8.0)"
    assert trt.config.flags == []
    assert trt.config.hardware_compatibility_level is None


def test_an_engine_for_other_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    trt = TensorRtWithoutGpu()

    built(trt, monkeypatch, trt_version_compatible=True)

    assert trt.config.flags == ["VERSION_COMPATIBLE"]


def test_an_engine_for_later_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    trt = TensorRtWithoutGpu()

    runs_on = built(trt, monkeypatch, trt_hardware_compatible=True)

    assert runs_on == "compute capability 8.0 and later"
    assert trt.config.hardware_compatibility_level == "AMPERE_PLUS"


def test_a_small_batch_takes_little_memory_from_tensorrt_10_10_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old, new = TensorRtWithoutGpu(), TensorRtWithoutGpu()
    resize = SimpleNamespace(RUNTIME_ACTIVATION_RESIZE_10_10="RESIZE")
    monkeypatch.setattr(new, "PreviewFeature", resize)

    for trt in (old, new):
        built(trt, monkeypatch)

    assert (old.config.features, new.config.features) == ([], ["RESIZE"])


def test_an_engine_is_built_on_the_gpu_that_was_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    current: list[str] = []
    emptied: list[str] = []

    @contextmanager
    def device(name: str) -> Iterator[None]:
        current.append(name)
        yield
        current.pop()

    def write(*_: object, options: ExportOptions, **__: object) -> dict[str, Any]:
        assert emptied == ["cuda:1"]  # torch keeps memory that TensorRT may need
        return {"built_on": current[-1]}

    flavor = Flavor(name="tensorrt", trt=TensorRtWithoutGpu())
    monkeypatch.setattr("torch.cuda.device", device)
    monkeypatch.setattr("torch.cuda.empty_cache", lambda: emptied.append(current[-1]))
    monkeypatch.setattr("export.to_tensorrt.load_flavor", lambda name, device: flavor)
    monkeypatch.setattr("export.to_tensorrt._gpu", lambda device: A100)
    monkeypatch.setattr("export.to_tensorrt.onnx_graph", lambda *_, **__: None)
    monkeypatch.setattr("export.to_tensorrt.write_engine", write)

    facts = TensorRtTarget().export(
        nn.Flatten(),
        torch.zeros(2, 3, 8, 8),
        tmp_path / "x.engine",
        precision="fp32",
        metadata={},
        options=ExportOptions(device="cuda:1"),
    )

    assert facts == {"built_on": "cuda:1"}


def test_tensorrt_builds_nothing_for_the_cpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is a GPU it would build for that, with a manifest that knows of none."""
    flavor = Flavor(name="tensorrt", trt=TensorRtWithoutGpu())
    monkeypatch.setattr("export.to_tensorrt.load_flavor", lambda name, device: flavor)

    with pytest.raises(MachineError) as caught:
        TensorRtTarget().export(
            nn.Flatten(),
            torch.zeros(2, 3, 8, 8),
            tmp_path / "x.engine",
            precision="fp32",
            metadata={"cifar_zoo_version": "0"},
            options=ExportOptions(device="cpu"),
        )

    assert str(caught.value) == (
        "TensorRT 11.4.0.106 builds on the GPU that the engine is for, not for --device cpu: use "
        "--device cuda, or --trt-flavor rtx, which builds without"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("stored", "after"), [(b"", b" and new"), (b"old", b"old and new")])
def test_a_timing_cache_is_read_and_kept_up(
    stored: bytes, after: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "timings"
    if stored:
        path.write_bytes(stored)

    built(TensorRtWithoutGpu(), monkeypatch, trt_timing_cache=path)

    assert path.read_bytes() == after


def test_a_timing_cache_of_another_gpu_is_refused_and_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "timings"
    path.write_bytes(b"of another GPU")

    with pytest.raises(ArtifactError) as caught:
        built(TensorRtWithoutGpu(), monkeypatch, trt_timing_cache=path)

    assert str(caught.value) == (
        f"{path} is no timing cache of TensorRT 11.4.0.106 on this GPU: delete it or name another "
        "file"
    )
    assert path.read_bytes() == b"of another GPU"


def test_a_timing_cache_of_a_failed_build_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "timings"
    path.write_bytes(b"old")

    with pytest.raises(MachineError, match="could not build the engine: it gave no reason"):
        built(TensorRtWithoutGpu(plan=None), monkeypatch, trt_timing_cache=path)

    assert path.read_bytes() == b"old"


def test_a_folder_is_no_timing_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZooError) as caught:
        built(TensorRtWithoutGpu(), monkeypatch, trt_timing_cache=tmp_path)

    assert str(caught.value) == f"--trt-timing-cache takes a file, got the folder {tmp_path}"
