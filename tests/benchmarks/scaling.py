"""How a training step grows with the number of processes: a model of it, held against two of them.

make scaling. Four kinds of measurement take turns: one process alone, two that share the machine
but exchange nothing, two that train together, and all-reduces of several sizes between two.
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from zoo import command
from zoo.environment import capture, git_commit
from zoo.errors import MachineError
from zoo.files import write_atomic, write_json

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "bench_results" / "training"
RECORD, PAGE = "scaling.json", "scaling.md"
COMMAND = "scaling"
ALONE, APART, TOGETHER, EXCHANGE = "alone", "apart", "together", "exchange"
KINDS = (ALONE, APART, TOGETHER, EXCHANGE)
EXCHANGED = (2**12, 2**16, 2**20, 2**22, 2**24)  # bytes
WARM_UP = 3  # steps, or exchanges

INTRO = """\
# Training steps on several processes

Written by `make scaling`; do not edit it.

With N processes a step takes

    T(N) = C(N) + A(N)
    A(N) = 2 (N - 1) (latency + bytes / (N bandwidth))

C(N) is the time of a process for its own images while N - 1 others compute beside it, A(N) an
all-reduce of the gradients around a ring, bytes being four for each parameter. DDP exchanges the
first gradients while the last are computed, so T(N) lies between max(C, A) and C + A. The
efficiency is T(1) / T(N), at equal images for each process. On accelerators C(N) is C(1); processes
on one CPU share its memory and caches, so C(N) is measured. Latency and bandwidth are fitted to
all-reduces of several sizes. For another machine put its own C, latency and bandwidth in.
"""


@dataclass(frozen=True, slots=True)
class Link:
    """What connects the processes, as an all-reduce sees it."""

    latency_s: float
    bytes_per_s: float

    def all_reduce_s(self, size: int, world: int) -> float:
        """Time of an all-reduce of `size` bytes around a ring of `world` processes."""
        return 2 * (world - 1) * (self.latency_s + size / (world * self.bytes_per_s))

    @classmethod
    def fitted(cls, times: dict[int, float], world: int) -> "Link":
        """To the time of an all-reduce by its bytes, with equal relative errors."""
        sizes = np.array(list(times), dtype=float)
        seconds = np.array(list(times.values()))
        columns = 2 * (world - 1) * np.stack([np.ones_like(sizes), sizes / world], 1)
        weighted = columns / seconds[:, None]
        (latency, per_byte), *_ = np.linalg.lstsq(weighted, np.ones_like(seconds))
        return cls(max(0.0, float(latency)), 1 / float(per_byte))


@dataclass(frozen=True, slots=True)
class Task:
    """What every process trains."""

    model: str
    batch: int  # images of a step for each process
    steps: int  # of one measurement: a number, not a time, so that all processes take as many

    def gradient_bytes(self) -> int:
        """What an all-reduce of a step carries."""
        from zoo.models import model_spec

        return 4 * model_spec(self.model).params


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, then write the record and the page."""
    args = build_parser().parse_args(argv)
    if args.worker:
        return work(args)
    return command.run(COMMAND, lambda: measure(args))


def build_parser() -> command.Parser:
    """All options."""
    parser = command.Parser(COMMAND, "Measure how a training step grows from one process to two.")
    parser.add_argument("--model", default="vit_tiny", metavar="NAME")
    parser.add_argument("--batch", type=command.positive_int, default=64, metavar="IMAGES")
    parser.add_argument("--steps", type=command.positive_int, default=20, metavar="N")
    parser.add_argument("--rounds", type=command.positive_int, default=6)
    parser.add_argument("--out", type=Path, default=FOLDER, metavar="FOLDER")
    parser.add_argument("--worker", choices=KINDS, help=argparse.SUPPRESS)
    return parser


def measure(args: argparse.Namespace) -> int:
    """Take turns, rounds of all kinds one after another."""
    task = Task(args.model, args.batch, args.steps)
    size = task.gradient_bytes()
    samples: dict[str, list[Any]] = {kind: [] for kind in KINDS}
    start = time.perf_counter()
    for number in range(args.rounds):
        for kind in KINDS:
            samples[kind].append(run_workers(task, kind))
        passed = time.perf_counter() - start
        print(f"round {number + 1} of {args.rounds}, {passed:.0f} s", file=sys.stderr, flush=True)
    record = {
        "task": asdict(task),
        "gradient_bytes": size,
        "environment": capture().to_json(),
        "commit": git_commit(ROOT),
        "threads": 1,
        "samples_s": samples,  # of each round: of each process, or by bytes
    }
    write_json(args.out / RECORD, record)
    write_atomic(args.out / PAGE, page(record))
    print(args.out / PAGE)
    return 0


def page(record: dict[str, Any]) -> str:
    """The record beside the model."""
    samples = record["samples_s"]
    # Processes that train together are as slow as the slower one in each step.
    alone, apart, together = (
        statistics.median(max(of_round) for of_round in samples[kind])
        for kind in (ALONE, APART, TOGETHER)
    )
    exchanged = {
        int(size): statistics.median(of_round[size] for of_round in samples[EXCHANGE])
        for size in samples[EXCHANGE][0]
    }
    link = Link.fitted(exchanged, world=2)
    exchange = link.all_reduce_s(record["gradient_bytes"], world=2)
    least, most = max(apart, exchange), apart + exchange
    task, machine = record["task"], record["environment"]
    sizes = "\n".join(
        f"| {size:,} | {1e3 * seconds:.3f} | {1e3 * link.all_reduce_s(size, 2):.3f} |"
        for size, seconds in exchanged.items()
    )
    return f"""{INTRO}
## {task["model"]}, {task["batch"]} images for each process, gloo

{machine["cpu"]}, one thread for each process, torch {machine["torch"]}; medians of
{len(samples[ALONE])} rounds.

| a step                              |     ms | efficiency |
| ----------------------------------- | -----: | ---------: |
| measured: one process, C(1)         | {1e3 * alone:6.1f} |            |
| measured: two apart, C(2)           | {1e3 * apart:6.1f} | {alone / apart:10.0%} |
| of the model: all-reduce, A(2)      | {1e3 * exchange:6.1f} |            |
| of the model: max(C, A)             | {1e3 * least:6.1f} | {alone / least:10.0%} |
| of the model: C + A                 | {1e3 * most:6.1f} | {alone / most:10.0%} |
| measured: two together, T(2)        | {1e3 * together:6.1f} | {alone / together:10.0%} |

T(2) is {together / most:.2f} times C + A and {together / least:.2f} times max(C, A).

An all-reduce between two processes: {1e6 * link.latency_s:.0f} us and
{link.bytes_per_s / 1e9:.2f} GB/s each way, fitted to

| bytes | measured ms | fitted ms |
| ----: | ----------: | --------: |
{sizes}
"""


def run_workers(task: Task, kind: str) -> Any:
    """Start the processes of one measurement; return what each says, or the first of an exchange.

    Raises:
        MachineError: one of them failed.
    """
    world = 1 if kind == ALONE else 2
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = ("--model", task.model, "--batch", str(task.batch), "--steps", str(task.steps))
    workers = []
    for rank in range(world):
        meeting = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world)}
        meeting |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        own = {"OMP_NUM_THREADS": "1"} | ({} if kind in (ALONE, APART) else meeting)
        workers.append(
            subprocess.Popen(
                [sys.executable, __file__, *arguments, "--worker", kind],
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                env=os.environ | own,
            )
        )
    found = []
    for worker in workers:
        out, err = worker.communicate()
        if worker.returncode:
            for other in workers:
                other.kill()
            reason = err.strip().splitlines() or [f"exit code {worker.returncode}"]
            raise MachineError(f"a process of {kind!r} failed: {reason[-1]}")
        found.append(json.loads(out))
    return found[0] if kind == EXCHANGE else found


def work(args: argparse.Namespace) -> int:
    """One process of a measurement: print the seconds of a step, or of each exchange."""
    import torch

    torch.set_num_threads(1)
    task = Task(args.model, args.batch, args.steps)
    print(json.dumps(exchange_s() if args.worker == EXCHANGE else step_s(task)))
    return 0


def step_s(task: Task) -> float:
    """Median time of a step in fp32, of real images with the augmentation of the study."""
    from dataclasses import replace

    import torch

    from training import Runtime, recipe_for
    from training.loop import Trainer
    from training.processes import processes
    from zoo.data import load_dataset
    from zoo.models import create_model

    data = load_dataset("cifar100-mini")
    runtime = Runtime(device="cpu")
    with processes(runtime) as accelerator:
        torch.manual_seed(0)
        recipe = replace(
            recipe_for("study", task.model),
            batch_size=task.batch * accelerator.num_processes,
            precision="fp32",
        )
        model = create_model(task.model, num_classes=data.num_classes)
        trainer = Trainer(model, recipe, runtime, data, accelerator, seed=0)
        times: list[float] = []
        before = time.perf_counter()
        for epoch in count(1):
            for _ in trainer.run_steps(epoch):
                now = time.perf_counter()
                times.append(now - before)
                before = now
                if len(times) == WARM_UP + task.steps:
                    return statistics.median(times[WARM_UP:])
        raise AssertionError  # epochs do not end


def exchange_s() -> dict[int, float]:
    """Median time of an all-reduce by its bytes."""
    import torch
    from torch import distributed

    distributed.init_process_group("gloo")
    found = {}
    for size in EXCHANGED:
        values = torch.zeros(size // 4)
        times = []
        for _ in range(WARM_UP + 20):
            distributed.barrier()
            before = time.perf_counter()
            distributed.all_reduce(values)
            times.append(time.perf_counter() - before)
        found[size] = statistics.median(times[WARM_UP:])
    distributed.destroy_process_group()
    return found


if __name__ == "__main__":
    sys.exit(main())
