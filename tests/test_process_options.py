"""How the options of several processes, of the compiler and of precision reach torch."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from small_runs import SHORT, TINY, few_of_each

from training.loop import Trainer
from training.options import build_parser, make_runtime
from training.processes import processes
from training.recipe import COMPILE_MODES, Runtime
from zoo.errors import MachineError, ZooError
from zoo.models import create_model
from zoo.session import tf32

# Two of these train one network, each on images of its own. The command refuses to compress on a
# CPU, where nothing is gained: only that check is passed over.
PROGRAM = """
import json
import sys
import torch
from accelerate import Accelerator
from training.processes import _ddp, prepare
from training.recipe import Runtime

found = {}
for hook, accumulate in (("none", 1), ("none", 2), ("fp16", 1), ("bf16", 1)):
    ddp = _ddp(Runtime(device="cpu", comm_hook=hook, accumulate=accumulate))
    accelerator = Accelerator(cpu=True, kwargs_handlers=[ddp])
    torch.manual_seed(0)
    plain = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 8 * 8, 5))
    network = prepare(plain, accelerator, image_size=8)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    torch.manual_seed(1 + accelerator.process_index)
    for _ in range(10):
        images, labels = torch.randn(16, 3, 8, 8), torch.randint(0, 5, (16,))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(images), labels).backward()
        optimizer.step()
    gradient, weight = plain[1].weight.grad, plain[1].weight.detach()
    found[f"{hook} {accumulate}"] = {
        "static_graph": network.static_graph,
        "views": network.gradient_as_bucket_view,
        "rounded to": [
            name
            for name, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16))
            if torch.equal(gradient, gradient.to(dtype).float())
        ],
        "weight": weight.flatten().tolist(),
    }
    accelerator.free_memory()
if accelerator.is_main_process:
    print(json.dumps(found))
torch.distributed.destroy_process_group()
"""


@pytest.fixture(scope="module")
def trained() -> dict[str, dict[str, object]]:
    """What two processes that share gradients find, by option."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    both = {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    root = str(Path(__file__).parents[1])
    children = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM],
            env=os.environ | both | {"RANK": rank, "LOCAL_RANK": rank, "PYTHONPATH": root},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in ("0", "1")
    ]
    ended = [(*child.communicate(timeout=300), child.returncode) for child in children]
    assert [code for *_, code in ended] == [0, 0], ended
    return json.loads(ended[0][0])


def test_gradients_are_views_of_what_is_sent_and_the_graph_is_static(
    trained: dict[str, dict[str, object]],
) -> None:
    assert all(found["views"] for found in trained.values())
    static = {name: found["static_graph"] for name, found in trained.items()}
    assert static == {"none 1": True, "none 2": False, "fp16 1": True, "bf16 1": True}


def test_gradients_travel_in_the_format_of_the_hook(
    trained: dict[str, dict[str, object]],
) -> None:
    assert trained["none 1"]["rounded to"] == []
    assert trained["fp16 1"]["rounded to"] == ["fp16"]
    assert "bf16" in trained["bf16 1"]["rounded to"]  # with fewer digits it may be fp16 too
    plain, *compressed = (
        torch.tensor(trained[f"{hook} 1"]["weight"]) for hook in ("none", "fp16", "bf16")
    )
    for weight, tolerance in zip(compressed, (1e-3, 1e-2), strict=True):
        assert 0 < (weight - plain).abs().max() < tolerance * plain.abs().max()


@pytest.mark.parametrize("mode", COMPILE_MODES)
def test_the_compile_mode_reaches_torch(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, object]] = []

    def fake_compile(call: Callable[..., object], **options: object) -> Callable[..., object]:
        asked.append(options)
        return call

    monkeypatch.setattr("torch.compile", fake_compile)
    monkeypatch.setattr("training.step.require_compiler", lambda device: None)
    given = ("resnet_20", "--device", "cpu", "--compile", "--compile-mode", mode)
    args = build_parser().parse_args(given)
    data = few_of_each()

    network = create_model(TINY, num_classes=data.num_classes)
    Trainer(network, SHORT, make_runtime(args), data, Accelerator(cpu=True), seed=0)

    assert asked == [{"dynamic": False, "mode": None if mode == "default" else mode}]


@pytest.mark.parametrize(("device", "allowed"), [("cpu", False), ("cuda", True)])
def test_products_of_a_gpu_may_be_rounded_to_tf32(
    device: str, allowed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.processes.require_kernels", lambda device: None)  # as with a GPU
    backends = (torch.backends.cuda.matmul, torch.backends.cudnn)

    with tf32(allowed=False):
        with processes(Runtime(device=device)):
            within = [backend.allow_tf32 for backend in backends]
        after = [backend.allow_tf32 for backend in backends]

    assert within == [allowed, allowed]
    assert after == [False, False]


@pytest.mark.parametrize(
    ("there", "runtime", "told"),
    [
        (
            {"WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": "4"},
            {},
            "4 processes on a machine with 2 GPUs: each needs one of its own",
        ),
        (
            {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"},
            {"cuda_graphs": "on"},
            "--cuda-graphs on is for a single process: leave it out with several",
        ),
    ],
    ids=["too many", "graphs"],
)
def test_what_several_processes_cannot_do_on_gpus_is_one_line(
    there: dict[str, str], runtime: dict[str, str], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.processes.require_kernels", lambda device: None)  # fake GPUs
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    for name, value in there.items():
        monkeypatch.setenv(name, value)

    with pytest.raises(ZooError) as caught, processes(Runtime(device="cuda", **runtime)):
        pass

    assert str(caught.value) == told


def test_an_operation_that_is_never_deterministic_is_one_line() -> None:
    pooled, places = torch.nn.functional.max_pool2d(torch.rand(1, 1, 4, 4), 2, return_indices=True)

    with (
        pytest.raises(MachineError) as caught,
        processes(Runtime(device="cpu", deterministic=True)),
    ):
        torch.nn.functional.max_unpool2d(pooled, places, 2)

    assert str(caught.value) == (
        "torch has no way to compute max_unpooling2d_forward_out that gives the same bits every "
        "time: begin without --deterministic"
    )
    assert not torch.are_deterministic_algorithms_enabled()
