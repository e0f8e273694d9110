"""Hold our times against those of the runtimes' own tools, in turns on one thread.

Eager torch against `torch.utils.benchmark`, ONNX Runtime against a bare loop over bound buffers as
`onnxruntime_perf_test` has it, OpenVINO's own clock in our calls against its `benchmark_app`, which
tells no other time; beside it stands our whole call, from tensor to tensor. A round takes both, and
the reference kernel before, between and after them: where that differs, the machine changed its
speed meanwhile, and the round is kept but does not count.

Figures agree where the median over the rounds of ours by theirs lies within 3% of 1 at batch 256,
and within 5% or 20 us at batch 1. It is not the ratio of two medians, which is in the file too: a
machine that changes its speed within a second would be in it.

Some minutes on an idle machine, a quarter of an hour on a busy one:

    PYTHONPATH=. .venv/bin/python tests/benchmarks/agreement.py

With --device cuda, CUDA event times of eager torch, the L2 cache overwritten before each call,
against `triton.testing.do_bench`, which does so too. No machine with a GPU has run that part yet.
"""

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from export import load_target
from export.target import ExportOptions
from export.to_openvino import OpenVinoSession
from profiling.gpu import CudaClock, l2_flush
from profiling.host import idlest_core
from profiling.latency import time_calls, time_reference
from profiling.samples import paired_ratio
from zoo import command
from zoo.doctor import require_kernels
from zoo.environment import capture, git_commit
from zoo.errors import MachineError
from zoo.files import write_json
from zoo.models import create_model
from zoo.session import EagerSession, InferenceSession

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "bench_results" / "trust"
FILES = {"cpu": "agreement.json", "cuda": "agreement-cuda.json"}
MODEL = "resnet_20"
METADATA = {"cifar_zoo_version": "0", "model": MODEL}  # of the files, which no manifest follows
ROUNDS, MOST_ROUNDS = 25, 400  # that count, and that are taken at most
STEADY = 0.05  # share by which the reference kernel may differ within a round that counts
SECONDS = {1: 0.1, 256: 0.4}  # of each side of a round
SHARES = {1: 0.05, 256: 0.03}  # by which medians may differ, by batch size
LEAST_MS = 0.02  # or by this much
WHOLE_CALL = "openvino, whole call from tensor to tensor"  # shown, but not held to agree
Timed = Callable[[], float]  # a round of calls: their median in milliseconds


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, write, and fail where a figure of ours is not that of the runtime's own tool."""
    parser = command.Parser("agreement", "Hold our times against those of the runtimes' tools.")
    parser.add_argument("--device", choices=FILES, default="cpu", help="(default: %(default)s)")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="(default: in bench_results/trust)"
    )
    args = parser.parse_args(argv)
    return command.run("agreement", lambda: _agreement(args))


def _agreement(args: argparse.Namespace) -> int:
    device, out = args.device, args.out or FOLDER / FILES[args.device]
    require_kernels(device)
    torch.set_num_threads(1)
    environment = capture(device).to_json()  # of all cores, before it keeps to one
    core = idlest_core()
    if core is not None:
        os.sched_setaffinity(0, {core})  # and with it whatever is started here
    model = create_model(MODEL).eval()
    rows, whole_calls = [], []
    with tempfile.TemporaryDirectory() as folder:
        both = pairs(model, Path(folder)) if device == "cpu" else cuda_pairs(model)
        for backend, batch, ours, theirs in both:
            row = compared(backend, batch, ours, theirs, device=device)
            (whole_calls if backend == WHOLE_CALL else rows).append(row)
            print("{backend} b{batch}: {ours_ms:.3f} and {theirs_ms:.3f} ms, {says}".format(**row))
    head = {"model": MODEL, "commit": git_commit(ROOT), "environment": environment}
    write_json(out, head | {"rows": rows, "whole_calls": whole_calls})
    print(out)
    return int(not all(row["agrees"] for row in rows))


def compared(
    backend: str, batch: int, ours: Timed, theirs: Timed, *, device: str
) -> dict[str, Any]:
    """Alternate both, which is first as well; the ratio is that of each round.

    So what drifts does so for both.
    """
    reference = time_reference(device, batch)
    rounds: list[dict[str, Any]] = []
    counted: list[dict[str, Any]] = []
    while len(counted) < ROUNDS and len(rounds) < MOST_ROUNDS:
        sides = {"ours_ms": ours, "theirs_ms": theirs}
        taken: dict[str, Any] = {"reference_ms": [statistics.median(reference().wall_ms)]}
        for side in list(sides)[:: -1 if len(rounds) % 2 else 1]:
            taken[side] = sides[side]()
            taken["reference_ms"].append(statistics.median(reference().wall_ms))
        rounds.append(taken)
        speeds = taken["reference_ms"]
        if max(speeds) <= (1 + STEADY) * min(speeds):
            counted.append(taken)
    if len(counted) < ROUNDS:
        raise MachineError(
            f"{backend} b{batch}: the machine kept its speed in {len(counted)} of {len(rounds)} "
            f"rounds, {ROUNDS} are needed: try again on an idle one"
        )
    ours_ms, theirs_ms = ([one[side] for one in counted] for side in ("ours_ms", "theirs_ms"))
    ratio = paired_ratio(ours_ms, [1] * ROUNDS, [(ms,) for ms in theirs_ms])
    assert ratio is not None
    off_ms = statistics.median(a - b for a, b in zip(ours_ms, theirs_ms, strict=True))
    agrees = abs(ratio.value - 1) <= SHARES[batch] or (batch == 1 and abs(off_ms) <= LEAST_MS)
    return {
        "backend": backend,
        "batch": batch,
        "ours_ms": statistics.median(ours_ms),
        "theirs_ms": statistics.median(theirs_ms),
        "ratio": ratio.value,
        "interval": ratio.interval,
        "ratio_of_medians": statistics.median(ours_ms) / statistics.median(theirs_ms),
        "off_ms": off_ms,
        "agrees": agrees,
        "says": f"ratio {ratio.value:.3f}: {'agrees' if agrees else 'does not agree'}",
        "counted": len(counted),
        "rounds": rounds,
    }


def pairs(model: torch.nn.Module, folder: Path) -> Iterator[tuple[str, int, Timed, Timed]]:
    """Backend, batch size, our rounds and those of the runtime's own tool."""
    eager = EagerSession(model)
    example = torch.zeros(2, 3, 32, 32)
    files = {}
    for name in ("onnx", "openvino"):
        target = load_target(name)
        files[name] = folder / f"{MODEL}{target.suffix}"
        options = ExportOptions()
        target.export(
            model, example, files[name], precision="fp32", metadata=METADATA, options=options
        )
    for batch in SHARES:
        images = torch.randn(batch, 3, 32, 32)
        yield "eager", batch, ours(eager, images), torch_timer(eager, images)
        onnx = load_target("onnx").open(files["onnx"], device="cpu")
        yield "onnx", batch, ours(onnx, images), onnx_loop(files["onnx"], images)
        openvino = OpenVinoSession(files["openvino"])
        app = benchmark_app(files["openvino"], images)
        yield "openvino", batch, inner(openvino, images), app
        yield WHOLE_CALL, batch, ours(openvino, images), app


def cuda_pairs(model: torch.nn.Module) -> Iterator[tuple[str, int, Timed, Timed]]:
    """The same of a GPU."""
    session = EagerSession(model, device="cuda")
    for batch in SHARES:
        images = torch.randn(batch, 3, 32, 32, device="cuda")
        yield "eager", batch, device_time(session, images), triton_bench(session, images)


def device_time(session: InferenceSession, images: Tensor) -> Timed:
    """A round of zoo-bench --l2-flush, by the GPU's own clock."""
    clock, flush = CudaClock("cuda"), l2_flush("cuda")

    def measure() -> float:
        session.run(images)
        seconds = SECONDS[len(images)]
        calls = time_calls(session, images, seconds=seconds, device_clock=clock, before_each=flush)
        return statistics.median(calls.device_ms)

    return measure


def triton_bench(session: InferenceSession, images: Tensor) -> Timed:
    """triton's own timer around the same call."""
    from triton.testing import do_bench

    milliseconds = 1e3 * SECONDS[len(images)]

    def measure() -> float:
        found = do_bench(lambda: session.run(images), rep=milliseconds, return_mode="median")
        return float(found)

    return measure


def ours(session: InferenceSession, images: Tensor) -> Timed:
    """A round of zoo-bench."""
    session.run(images)

    def measure() -> float:
        session.run(images)
        return statistics.median(time_calls(session, images, seconds=SECONDS[len(images)]).wall_ms)

    return measure


def inner(session: OpenVinoSession, images: Tensor) -> Timed:
    """What OpenVINO's clock says of our calls: benchmark_app tells no other time."""
    session.run(images)

    def measure() -> float:
        samples_ms: list[float] = []
        end = time.perf_counter() + SECONDS[len(images)]
        while time.perf_counter() < end or not samples_ms:
            session.run(images)
            assert session.inner_ms is not None
            samples_ms.append(session.inner_ms)
        return statistics.median(samples_ms)

    return measure


def torch_timer(session: InferenceSession, images: Tensor) -> Timed:
    """torch's own timer around the same call."""
    from torch.utils.benchmark import Timer

    timer = Timer("session.run(images)", globals={"session": session, "images": images})
    seconds = SECONDS[len(images)]
    return lambda: 1e3 * float(timer.blocked_autorange(min_run_time=seconds).median)


def onnx_loop(path: Path, images: Tensor) -> Timed:
    """ONNX Runtime on buffers that are bound once, timed around its own call alone."""
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = settings.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(path), settings, ["CPUExecutionProvider"])
    binding = session.io_binding()
    binding.bind_cpu_input(session.get_inputs()[0].name, images.numpy())
    binding.bind_output(session.get_outputs()[0].name, "cpu")

    def measure() -> float:
        samples_ms: list[float] = []
        session.run_with_iobinding(binding)
        end = time.perf_counter() + SECONDS[len(images)]
        while time.perf_counter() < end or not samples_ms:
            start = time.perf_counter()
            session.run_with_iobinding(binding)
            samples_ms.append(1e3 * (time.perf_counter() - start))
        return statistics.median(samples_ms)

    return measure


def benchmark_app(path: Path, images: Tensor) -> Timed:
    """The loop of OpenVINO's benchmark_app: one stream, one thread, one request after the other.

    As with its -hint none -nstreams 1 -nthreads 1 -infer_precision f32 -shape -inference_only, but
    in this process, for its own takes a second at least, in which a machine changes its speed.
    """
    import openvino
    from openvino.tools.benchmark.benchmark import Benchmark

    batch = len(images)
    tool = Benchmark("CPU", 1, None, SECONDS[batch], "sync", inference_only=True)
    network = tool.read_model(str(path))
    network.reshape([batch, 3, 32, 32])
    settings = {
        "NUM_STREAMS": 1,
        "INFERENCE_NUM_THREADS": 1,
        "INFERENCE_PRECISION_HINT": "f32",
        "ENABLE_CPU_PINNING": False,  # to a core of its own choice
    }
    requests = tool.create_infer_requests(tool.core.compile_model(network, "CPU", settings))
    requests[0].set_input_tensor(openvino.Tensor(images.numpy()))
    tool.first_infer(requests)

    class Queue:
        def get_next_batch_size(self) -> int:
            return batch

    def measure() -> float:
        samples_ms, *_ = tool.sync_inference(requests[0], Queue())
        return float(statistics.median(samples_ms))

    return measure


if __name__ == "__main__":
    raise SystemExit(main())
