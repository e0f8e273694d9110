"""The processes of a run: how they find each other, agree and end."""

import copy
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TypeVar, cast

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import (
    DDPCommunicationHookType,
    DistributedDataParallelKwargs,
    broadcast_object_list,
)
from torch import nn

from training.elastic import PeerLost
from training.recipe import Runtime
from zoo.allocator import keep_memory
from zoo.doctor import require_kernels
from zoo.errors import MachineError, ZooError, first_line
from zoo.session import tf32
from zoo.text import counted

T = TypeVar("T")

CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
NOT_DETERMINISTIC = " does not have a deterministic implementation"
PEER_LOST = re.compile(
    "connection (reset|closed|refused)|broken pipe|gloo|nccl|timed? ?out", re.IGNORECASE
)


@dataclass(frozen=True, slots=True)
class Job:
    """What a launcher tells the processes that it started."""

    id: str | None  # the same after a restart; None: no launcher
    restarts: int

    @classmethod
    def current(cls) -> "Job":
        """The one that this process belongs to."""
        count = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        return cls(os.environ.get("TORCHELASTIC_RUN_ID"), int(count) if count.isdecimal() else 0)

    @property
    def may_have_run(self) -> bool:
        """Whether a run of this job may lie there: a launcher without a name says "none"."""
        return self.id is not None and (self.id != "none" or self.restarts > 0)


@contextmanager
def processes(runtime: Runtime) -> Iterator[Accelerator]:
    """The processes of this run, under its own random numbers; all is put back at the end.

    Memory that is freed stays with the process, from then on: see `zoo.allocator`.

    Raises:
        ZooError: a GPU is asked for and there is none, or fewer than processes, or an option that
            needs one, or one process alone.
        MachineError: torch holds no code for this GPU, or nothing deterministic for a network.
        PeerLost: another process ended.
    """
    cpu = runtime.device == "cpu" or (runtime.device == "auto" and not torch.cuda.is_available())
    keep_memory()
    if not cpu:
        require_kernels("cuda")
        _check_gpus(runtime)
    if cpu and runtime.comm_hook != "none":
        raise ZooError(
            f"--comm-hook {runtime.comm_hook} compresses gradients between GPUs: "
            "leave it out on CPUs"
        )
    if cpu and runtime.sync_batchnorm:
        raise ZooError("--sync-batchnorm works between GPUs: leave it out on CPUs")
    if cpu and runtime.cuda_graphs == "on":
        raise ZooError("--cuda-graphs on needs a GPU: leave it out on CPUs")
    devices = [] if cpu else list(range(torch.cuda.device_count()))
    with torch.random.fork_rng(devices=devices), _peers(), _deterministic(runtime.deterministic):
        AcceleratorState._reset_state(reset_partial_state=True)
        accelerator = Accelerator(cpu=cpu, mixed_precision="no", kwargs_handlers=[_ddp(runtime)])
        try:
            if cpu:
                yield accelerator
            else:
                with tf32(allowed=True):
                    yield accelerator
        finally:
            AcceleratorState._reset_state(reset_partial_state=True)


def _check_gpus(runtime: Runtime) -> None:
    """Refuse what several processes on GPUs cannot do, before they meet."""
    here, gpus = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if here > max(1, gpus):  # torchrun would have two share one, which NCCL refuses
        raise ZooError(
            f"{here} processes on a machine with {counted(gpus, 'GPU')}: each needs one of its own"
        )
    # DDP keeps what adds gradients up on the default stream, which no capture may wait for.
    if runtime.cuda_graphs == "on" and _world() > 1:
        raise ZooError("--cuda-graphs on is for a single process: leave it out with several")


class Alone(Accelerator):  # type: ignore[misc]  # accelerate has no types
    """One process of several, for what it does while the others wait: as if there were none."""

    @property
    def num_processes(self) -> int:
        """Itself."""
        return 1

    @property
    def process_index(self) -> int:
        """It is the first."""
        return 0

    def prepare_model(self, model: nn.Module, *_: object, **__: object) -> nn.Module:
        """As it is: no gradient is averaged."""
        return model


def told(accelerator: Accelerator, value: T) -> T:
    """What the first process passes, in every process."""
    if accelerator.num_processes == 1:
        return value
    found = [value]
    broadcast_object_list(found)
    return found[0]


def by_first(accelerator: Accelerator, call: Callable[[], T]) -> T:
    """What the first process gets from `call`, or the error that it meets, in every process."""
    if accelerator.num_processes == 1:
        return call()
    found: list[T | ZooError | OSError | None] = [None]
    if accelerator.is_main_process:
        try:
            found[0] = call()
        except (ZooError, OSError) as error:
            found[0] = error
    answer = told(accelerator, found[0])
    if isinstance(answer, ZooError | OSError):
        raise answer
    return cast(T, answer)


def summed(accelerator: Accelerator, values: list[float]) -> list[float]:
    """The sum over all processes."""
    if accelerator.num_processes == 1:
        return values
    # float32: not every device adds float64
    flags = torch.tensor(values, device=accelerator.device)
    return [float(v) for v in accelerator.reduce(flags, "sum").tolist()]


def prepare(network: nn.Module, accelerator: Accelerator, *, image_size: int) -> nn.Module:
    """The network, which averages its gradients over the processes where there are several.

    A static graph may have parameters that it does not use. Without one, DDP has to be told.
    """
    options = accelerator.ddp_handler
    if accelerator.num_processes > 1 and not options.static_graph:
        options.find_unused_parameters = has_idle_parameters(network, image_size)
    prepared: nn.Module = accelerator.prepare_model(network)
    return prepared


def has_idle_parameters(network: nn.Module, image_size: int) -> bool:
    """Whether there are some that learn, but are not used: a copy is tried on two images."""
    twin = copy.deepcopy(network).train()
    learning = [parameter for parameter in twin.parameters() if parameter.requires_grad]
    device = learning[0].device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        twin(torch.zeros(2, 3, image_size, image_size, device=device)).sum().backward()
    return any(parameter.grad is None for parameter in learning)


def _ddp(runtime: Runtime) -> DistributedDataParallelKwargs:
    hooks = {
        "none": DDPCommunicationHookType.NO,
        "fp16": DDPCommunicationHookType.FP16,
        "bf16": DDPCommunicationHookType.BF16,
    }
    return DistributedDataParallelKwargs(
        comm_hook=hooks[runtime.comm_hook],
        gradient_as_bucket_view=True,
        # With a first backward that sends nothing, DDP fails an assertion (torch 2.14).
        static_graph=runtime.accumulate == 1,
    )


def _world() -> int:
    return int(os.environ.get("WORLD_SIZE", "1"))


@contextmanager
def _peers() -> Iterator[None]:
    """One line where another process of the run is gone."""
    try:
        yield
    except RuntimeError as error:
        if _world() > 1 and (
            isinstance(error, torch.distributed.DistError) or PEER_LOST.search(str(error))
        ):
            raise PeerLost(
                f"another process of this run is gone ({first_line(error)}): "
                "continue with --resume auto"
            ) from error
        raise


@contextmanager
def _deterministic(wanted: bool) -> Iterator[None]:
    """The same bits every time, on one device."""
    if not wanted:
        yield
        return
    cudnn = torch.backends.cudnn
    before = torch.are_deterministic_algorithms_enabled(), cudnn.deterministic, cudnn.benchmark
    workspace = os.environ.get(CUBLAS)
    os.environ[CUBLAS] = ":4096:8"  # what cuBLAS needs to give the same sums on several streams
    torch.use_deterministic_algorithms(True)
    cudnn.deterministic, cudnn.benchmark = True, False
    try:
        yield
    except RuntimeError as error:
        operation, stop, _ = str(error).partition(NOT_DETERMINISTIC)
        if stop:
            raise MachineError(
                f"torch has no way to compute {operation} that gives the same bits every time: "
                "begin without --deterministic"
            ) from error
        raise
    finally:
        torch.use_deterministic_algorithms(before[0])
        cudnn.deterministic, cudnn.benchmark = before[1:]
        if workspace is None:
            os.environ.pop(CUBLAS, None)
        else:
            os.environ[CUBLAS] = workspace
