"""What must not become slower: one entry for each hot path, for pytest-benchmark and for the gate.

A path is prepared once in a process; the call that preparation returns is what is timed. All
networks are as they are initialised with seed 0. Exported files are kept in a folder that the
caller names, so that they are written once. Nothing of ours is imported until a path is prepared:
the gate prepares the paths of this file with the code of another commit.
"""

import re
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

MODELS = (
    "resnet_20",
    "resnet_32",
    "resnet_56",
    "ecanet20_adaptive",
    "improved_resnet20_convnext",
    "ghost_resnet_20",
)
BATCHES = (1, 32)
# backend -> the packages without which it cannot run
BACKENDS = {
    "eager": (),
    "compile": (),
    "onnx": ("onnx", "onnxscript", "onnxruntime"),
    "openvino": ("onnx", "onnxscript", "openvino"),
    "aoti": (),
    "torchexport": (),
}
QUICK_TO_OPEN = ("eager", "onnx", "openvino")  # the others compile for minutes, or are eager's twin
TRAIN_BATCH, AUGMENT_BATCH = 32, 500
COMMANDS = ("train", "bench")  # whose start is timed: entry points in cifar_zoo.py

Call = Callable[[], Any]


@dataclass(frozen=True, kw_only=True)
class HotPath:
    """One thing that is timed."""

    name: str
    group: str  # of the rows of pytest-benchmark
    prepare: Callable[[Path], Call]  # folder of exported files -> the call
    is_right: Callable[[Any], bool]  # of what the call returned: a fast wrong answer is no result
    needs: tuple[str, ...] = ()  # packages
    needs_compiler: bool = False
    is_cold: bool = False  # timed as it is met first, without a call to warm up
    is_gated: bool = True  # compared between two commits
    rounds: int = 30

    def missing(self) -> str | None:
        """What this machine lacks for it, by name; None: nothing."""
        for package in self.needs:
            if find_spec(package) is None:
                return f"the package {package} is not installed"
        if self.needs_compiler:
            from zoo.errors import MachineError
            from zoo.session import require_compiler

            try:
                require_compiler("cpu")
            except MachineError as error:
                return str(error)
        return None


def cpu_seconds() -> float:
    """CPU time of this process, of its threads, and of its children that have ended."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def hot_paths() -> Iterator[HotPath]:
    """All of them, in the order in which they are timed."""
    for backend, needs in BACKENDS.items():
        for model in MODELS:
            for batch in BATCHES:
                yield HotPath(
                    name=f"forward-{backend}-{model}-b{batch}",
                    group=f"forward-b{batch}",
                    prepare=_forward(backend, model, batch),
                    is_right=_is_logits(batch),
                    needs=needs,
                    needs_compiler=backend in ("compile", "aoti"),
                    is_gated=backend in QUICK_TO_OPEN,
                )
    yield HotPath(
        name="train-step",
        group="training",
        prepare=_step,
        is_right=lambda step: bool(step[0].isfinite()),
        rounds=15,
    )
    yield HotPath(
        name="augmentation",
        group="training",
        prepare=_augmentation,
        is_right=_is_batch,
    )
    for target in ("onnx", "openvino"):
        yield HotPath(
            name=f"load-{target}",
            group="artifact",
            prepare=_load(target),
            is_right=lambda session: session.precision == "fp32",
            needs=BACKENDS[target],
        )
    yield HotPath(
        name="export-onnx",
        group="artifact",
        prepare=_export,
        is_right=lambda path: path.stat().st_size > 2**20,  # 278,324 parameters of four bytes
        needs=BACKENDS["onnx"],
        is_cold=True,
        rounds=1,
    )
    for command in COMMANDS:
        yield HotPath(
            name=f"start-zoo-{command}",
            group="start",
            prepare=_start(command),
            is_right=lambda ended: ended.stdout.startswith(b"usage: zoo-"),
            rounds=5,
        )


def gated(pattern: str | None) -> list[HotPath]:
    """The hot paths of the gate whose names a pattern is found in.

    Raises:
        ZooError: it is none, or is found in none.
    """
    from zoo.errors import ZooError

    try:
        found = [p for p in hot_paths() if p.is_gated and re.search(pattern or "", p.name)]
    except re.error as error:
        raise ZooError(f"--only {pattern}: {error}") from None
    if not found:
        raise ZooError(f"--only {pattern} is found in no hot path, such as train-step")
    return found


def network(name: str) -> Any:
    """A network as it is initialised with seed 0, in eval mode."""
    import torch

    from zoo.models import create_model

    torch.manual_seed(0)
    return create_model(name, num_classes=100).eval()


def exported(target: str, model: str, folder: Path) -> Path:
    """The file of a network in `folder`; it is written where it is not there yet."""
    import torch

    from export import load_target
    from export.target import ExportOptions

    writer = load_target(target)
    path = folder / f"{target}-{model}" / f"{model}{writer.suffix}"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        writer.export(
            network(model),
            torch.zeros(2, 3, 32, 32),
            path,
            precision="fp32",
            metadata={"cifar_zoo_version": "0"},
            options=ExportOptions(),
        )
    return path


def _forward(backend: str, model: str, batch: int) -> Callable[[Path], Call]:
    def prepare(folder: Path) -> Call:
        import torch

        from export import load_target
        from zoo.session import CompiledSession, EagerSession

        if backend == "eager":
            session: Any = EagerSession(network(model))
        elif backend == "compile":
            session = CompiledSession(network(model))
        else:
            session = load_target(backend).open(exported(backend, model, folder), device="cpu")
        images = torch.randn(batch, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        return lambda: session.run(images)

    return prepare


def _is_logits(batch: int) -> Callable[[Any], bool]:
    return lambda logits: logits.shape == (batch, 100) and bool(logits.isfinite().all())


def trainer(batch: int) -> Any:
    """resnet_20 on the shipped images, augmented as a recipe does by default."""
    from dataclasses import replace

    from accelerate import Accelerator

    from training import Runtime, named_recipe
    from training.loop import Trainer
    from zoo.data import load_dataset

    made = Trainer(
        network("resnet_20"),
        replace(named_recipe("smoke"), batch_size=batch),
        Runtime(device="cpu"),
        load_dataset("cifar100-mini"),
        Accelerator(cpu=True),
        seed=0,
    )
    made.stepper.train_mode()
    made.stepper.begin(1)
    return made


def _step(folder: Path) -> Call:
    made = trainer(TRAIN_BATCH)
    stepper = made.stepper

    def take() -> Any:
        if stepper.step == made.steps:
            stepper.begin(stepper.epoch + 1)
        return stepper.take()

    return take


def _augmentation(folder: Path) -> Call:
    from training.philox import Numbers

    stepper = trainer(AUGMENT_BATCH).stepper
    images, labels = stepper.source.batch(stepper.order[:AUGMENT_BATCH])
    numbers = Numbers(key=stepper.key, epoch=stepper.place[0], place=stepper.offset)
    return lambda: stepper.augmentation(images, labels, numbers)


def _is_batch(batch: Any) -> bool:
    images = batch[0]
    return images.shape == (AUGMENT_BATCH, 3, 32, 32) and bool(images.isfinite().all())


def _load(target: str) -> Callable[[Path], Call]:
    def prepare(folder: Path) -> Call:
        from export import load_target

        path, reader = exported(target, "resnet_20", folder), load_target(target)
        return lambda: reader.open(path, device="cpu")

    return prepare


def _export(folder: Path) -> Call:
    import shutil
    import tempfile

    def call() -> Path:
        place = Path(tempfile.mkdtemp(prefix="export-", dir=folder))
        written = exported("onnx", "resnet_20", place)
        kept = folder / "last.onnx"
        written.replace(kept)
        shutil.rmtree(place)
        return kept

    return call


def _start(command: str) -> Callable[[Path], Call]:
    code = f"import cifar_zoo, sys; sys.argv[1:] = ['--help']; sys.exit(cifar_zoo.{command}())"

    def prepare(folder: Path) -> Call:
        words = (sys.executable, "-P", "-c", code)
        return lambda: subprocess.run(words, capture_output=True, check=True)

    return prepare
