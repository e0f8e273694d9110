from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator
from small_pretraining import needs_lightly, settings
from small_runs import SHORT, few_of_each
from torch import Tensor, nn

from training import Runtime
from training.loop import Trainer
from training.precision import (
    DepthwiseInFp32,
    keep_depthwise_in_fp32,
    resolve_precision,
    slow_format,
)
from training.pretrainer import Pretrainer
from zoo.errors import ZooError
from zoo.models import create_model

CPU = torch.device("cpu")
DEPTHWISE = "improved_resnet20_convnext"  # with 7x7 convolutions


@pytest.mark.parametrize(
    ("fake_capability", "precision"), [((7, 0), "fp16"), ((7, 5), "fp16"), ((9, 0), "bf16")]
)
def test_precision_of_gpus(
    fake_capability: tuple[int, int], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: fake_capability)

    assert resolve_precision("auto", torch.device("cuda")) == precision


@pytest.mark.parametrize(
    ("fake_flags", "precision"), [(("avx2",), "fp32"), (("avx512_bf16",), "bf16")]
)
def test_precision_of_cpus(
    fake_flags: tuple[str, ...], precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.precision.cpu_flags", lambda: fake_flags)

    assert resolve_precision("auto", CPU) == precision


@pytest.mark.parametrize(
    ("fake_flags", "precision", "is_slow"),
    [
        (("avx2",), "bf16", True),
        (("avx2",), "fp32", False),
        (("avx512_bf16",), "bf16", False),
    ],
)
def test_a_format_without_units_is_told(
    fake_flags: tuple[str, ...], precision: str, is_slow: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.precision.cpu_flags", lambda: fake_flags)

    told = slow_format(precision, CPU)

    assert (told is not None and "--set precision=fp32" in told) == is_slow
    assert slow_format(precision, torch.device("cuda")) is None


def test_precision_that_the_device_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.precision.cpu_flags", lambda: ("avx2",))
    with pytest.raises(
        ZooError, match=r"precision fp16 needs a GPU: begin with --set precision=fp32 on"
    ):
        resolve_precision("fp16", CPU)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    with pytest.raises(ZooError, match=r"bf16 needs compute capability 8.0.*precision=fp16"):
        resolve_precision("bf16", torch.device("cuda"))


def test_no_gradient_of_a_dilated_convolution_in_bf16_holds_foreign_memory() -> None:
    """Of oneDNN's own kernel for bf16 it does, on CPUs with AVX-512."""
    torch.manual_seed(0)
    network = nn.Conv2d(32, 32, 3, padding=2, dilation=2, groups=32, bias=False)
    network.to(memory_format=torch.channels_last)
    images, above = (torch.randn(4, 32, 32, 32).bfloat16().float() for _ in range(2))
    exact = torch.nn.grad.conv2d_weight(
        images.double(), network.weight.shape, above.double(), padding=2, dilation=2, groups=32
    )

    keep_depthwise_in_fp32(network, "bf16", CPU)
    with torch.autocast("cpu", torch.bfloat16):
        y = network(images.contiguous(memory_format=torch.channels_last))
    for size in range(4, 24):  # what is freed here lies there for the taking
        _ = [torch.full((2**size,), 1e20) for _ in range(6)]
    y.backward(above.to(y).contiguous(memory_format=torch.channels_last))

    assert y.dtype == torch.bfloat16
    assert network.weight.grad is not None
    assert distance(network.weight.grad, exact) < 0.01


@pytest.mark.parametrize(
    ("precision", "device", "in_fp32"),
    [("bf16", "cpu", 8), ("fp32", "cpu", 0), ("bf16", "cuda", 0)],
)
def test_depthwise_convolutions_leave_bf16_on_a_cpu(
    precision: str, device: str, in_fp32: int
) -> None:
    network = create_model("ghostnet_100", num_classes=100)
    names = list(network.state_dict())

    keep_depthwise_in_fp32(network, precision, torch.device(device))

    assert len(changed(network)) == in_fp32
    assert all(one.groups == one.in_channels for one in changed(network))
    assert list(network.state_dict()) == names


def test_trainings_keep_depthwise_convolutions_in_fp32() -> None:
    recipe = replace(SHORT, precision="bf16", ema_decay=0.9)
    network = create_model(DEPTHWISE, num_classes=100)

    run = Trainer(
        network, recipe, Runtime(device="cpu"), few_of_each(), Accelerator(cpu=True), seed=0
    )

    assert changed(run.plain)
    assert len(changed(run.selected)) == len(changed(run.plain))
    list(run.run_steps(1))


@needs_lightly
def test_pretrainings_keep_depthwise_convolutions_in_fp32() -> None:
    asked = settings("moco", precision="bf16")

    run = Pretrainer(DEPTHWISE, asked, few_of_each(), Accelerator(cpu=True), seed=0)

    assert changed(run.method.learns)
    assert len(changed(run.method.rest)) == len(changed(run.method.learns))


def changed(network: nn.Module) -> list[DepthwiseInFp32]:
    return [one for one in network.modules() if isinstance(one, DepthwiseInFp32)]


def distance(found: Tensor, exact: Tensor) -> float:
    return float((found.double() - exact).norm() / exact.norm())
