import json
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from bench_helpers import onnx_file
from sample_run import sample_run
from torch import Tensor, nn

from profiling import layers
from profiling.cli import main
from profiling.layers import Layer, LayerTimes, layer_times, layers_text
from zoo.cost import cost_of_model
from zoo.data import load_dataset
from zoo.models import create_model
from zoo.session import EagerSession

QUICK = ("--budget", "0.05", "--threads", "1")


class Block(nn.Module):
    """One activation that is called twice, a sum and attention of its own, an idle layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 8, 3, padding=1)
        self.act = nn.ReLU()
        self.inner = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8))
        self.idle = nn.Linear(5, 5)
        self.scale = nn.Parameter(torch.ones(8))

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.first(x))
        x = self.act(self.inner(x) + x)
        tokens = x.flatten(2).transpose(1, 2) * self.scale  # (B, 64, 8)
        return F.scaled_dot_product_attention(tokens, tokens, tokens).mean(1)


def times_of(model: nn.Module, *, batch: int = 2) -> LayerTimes:
    session = EagerSession(model)
    return layer_times(session, "block", image_shape=(3, 8, 8), batch=batch, budget_s=0.05)


def test_layers_by_hand() -> None:
    model = Block()

    found = times_of(model)

    named = {layer.name: layer for layer in found.layers}
    assert list(named) == ["first", "inner.0", "inner.1", "act", ""]
    assert (named["first"].kind, named["first"].params) == ("conv 3x3", 3 * 8 * 9 + 8)
    assert named["first"].output_shape == (2, 8, 8, 8)
    assert [layer.macs for layer in found.layers] == [64 * 27 * 8, 64 * 64, 0, 0, 2 * 64 * 64 * 8]
    assert named[""].kind == "Block: add, mul, bmm, ..."
    assert named[""].params == 8  # its own parameter
    assert found.macs == cost_of_model(model, (3, 8, 8)).macs
    assert found.params == cost_of_model(model).params  # the idle layer included
    assert all(layer.time_ms > 0 for layer in found.layers)
    assert found.passes >= 5


@pytest.mark.parametrize("name", ["resnet_20", "mlp_mixer_nano"])
def test_the_sum_is_the_published_figure(name: str) -> None:
    model = create_model(name)

    found = layer_times(EagerSession(model), name, image_shape=(3, 32, 32), batch=1, budget_s=0.05)

    cost = cost_of_model(model)
    assert sum(layer.macs for layer in found.layers) == found.macs == cost.macs
    assert sum(layer.params for layer in found.layers) == found.params == cost.params


def test_no_hook_is_left() -> None:
    model = Block()

    times_of(model)

    for module in model.modules():
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


class FakeEvent:
    """Stands in for an event of a CUDA stream: each one is recorded a millisecond after another.

    On another stream than that of cuda:1, where the work is, nothing happens between two events.
    """

    now = 0.0

    def __init__(self, enable_timing: bool) -> None:
        assert enable_timing
        self.time = -1.0

    def record(self, stream: str | None = None) -> None:
        FakeEvent.now += stream == "stream of cuda:1"
        self.time = FakeEvent.now

    def elapsed_time(self, end: "FakeEvent") -> float:
        return end.time - self.time


def test_on_a_gpu_events_tell_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "Event", FakeEvent)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: f"stream of {device}")
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU())
    session = EagerSession(model)

    found = layers._timed_pass(session, torch.zeros(1, 3, 8, 8), layers._cuda_clock("cuda:1"))

    # came, started, ended and left of two layers, between the start and the end of the whole
    assert found == {"0": 1.0, "1": 1.0, "": 9.0 - 2 * 3.0}


def test_text_of_a_table() -> None:
    found = LayerTimes(
        model="net",
        backend="eager",
        runtime="torch 2.14.1",
        device="cpu",
        threads=1,
        batch=2,
        image_shape=(3, 8, 8),
        params=12,
        macs=3_000_000,
        forward_ms=4.0,
        passes=7,
        layers=(
            Layer(
                name="conv",
                kind="conv 1x1",
                output_shape=(2, 4, 8, 8),
                params=12,
                macs=3_000_000,
                time_ms=3.0,
            ),
            Layer(name="", kind="Net: add", output_shape=None, params=0, macs=0, time_ms=1.0),
        ),
        between_ms=1.0,
    )

    assert layers_text(found) == (
        "net, eager, b2 of 3x8x8, cpu, 1 thread\n"
        "layer      what      output   params  MACs M    ms  time %  GMAC/s\n"
        "conv       conv 1x1  2x4x8x8      12   3.000  3.00    60.0    2.00\n"
        "(network)  Net: add                           1.00    20.0\n"
        "(between)  Python                             1.00    20.0\n"
        "sum                               12   3.000  5.00   100.0\n"
        "A whole call without timers takes 4.00 ms: the sum is 125% of it. "
        "Medians of 7 calls each, in turns.\n"
    )
    assert found.to_json()["layers_ms"] == 5.0


def test_layers_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = sample_run(tmp_path / "run", load_dataset("cifar100-mini")).path

    code = main([str(run), "--layers", "--json", "--batch", "1,3", *QUICK])

    one, three = json.loads(capsys.readouterr().out)
    assert code == 0
    assert (one["model"], one["batch"], three["batch"]) == ("resnet_20", 1, 3)
    assert three["layers"][0]["output_shape"][0] == 3
    assert not (run / "records").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("resnet_20", "--backend", "eager"),
            "--layers takes eager torch, whose layers can be timed: no --backend",
        ),
        (("resnet_20,resnet_32",), "--layers takes one run or one model, got 2: name one"),
        (("net.onnx",), "--layers takes one run or one model, got 0: name one"),
        (("resnet_20", "--cost"), "--cost and --layers exclude each other: leave one out"),
    ],
)
def test_mistakes(
    arguments: tuple[str, ...],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    onnx_file(tmp_path / "net.onnx", batch="batch")

    assert main([*arguments, "--layers"]) == 2

    assert capsys.readouterr().err == f"zoo-bench: {message}\n"


@pytest.mark.parametrize("changes", [{"batch": 0}, {"budget_s": 0.0}])
def test_no_table_of_nothing(changes: dict[str, Any]) -> None:
    options = {"image_shape": (3, 8, 8), "batch": 1, "budget_s": 0.1} | changes

    with pytest.raises(ValueError, match="no layer times with batch"):
        layer_times(EagerSession(Block()), "block", **options)
