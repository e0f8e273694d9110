"""Training kernels: the numbers of torch's convolutions, and taken only where they are faster."""

import copy
import importlib
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from training import kernels
from training.kernels import Choice, kernel_for, restore, use_fast_kernels
from zoo.models import create_model

pytestmark = pytest.mark.filterwarnings(
    # torch.library looks for a CUDA compiler on import, in torch 2.14
    "ignore:No CUDA runtime is found:UserWarning"
)

pytest.importorskip("triton", reason="needs triton, which torch's builds for GPUs bring on Linux")
depthwise_module = importlib.import_module("training.depthwise")
depthwise = depthwise_module.depthwise

CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")
ROOT = Path(__file__).parents[1]
# For an interpreter of Triton, which is chosen on import: in a process of its own.
INTERPRETED = Path(__file__).parent / "reference" / "interpreted_kernels.py"


def passes(
    convolve: Callable[[Tensor, Tensor], Tensor], x: Tensor, weight: Tensor
) -> tuple[Tensor, ...]:
    """Result, gradient of the input, gradient of the weight."""
    x, weight = x.detach().requires_grad_(), weight.detach().requires_grad_()
    y = convolve(x, weight)
    g = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return y, *torch.autograd.grad(y, (x, weight), g.to(y))


def torch_depthwise(stride: int) -> Callable[[Tensor, Tensor], Tensor]:
    def convolve(x: Tensor, weight: Tensor) -> Tensor:
        size = weight.shape[-1]
        return F.conv2d(x, weight, stride=stride, padding=size // 2, groups=len(weight))

    return convolve


# Depthwise


@pytest.mark.parametrize(
    ("height", "width", "size", "stride", "outputs"),
    [
        (16, 16, 7, 1, 64),  # four strips
        (16, 16, 7, 2, 16),  # two rows of the result a strip
        (8, 8, 7, 1, 256),  # one strip
        (9, 7, 7, 1, 16),  # the last strip is shorter
        (9, 7, 7, 2, 16),
        (11, 13, 5, 2, 40),
        (10, 5, 3, 3, 4),
        (1, 1, 7, 1, 256),
        (32, 32, 7, 1, 256),
        (5, 40, 7, 1, 16),  # a row wider than a product
    ],
)
def test_depthwise_agrees_with_torch(
    monkeypatch: pytest.MonkeyPatch, height: int, width: int, size: int, stride: int, outputs: int
) -> None:
    monkeypatch.setattr(depthwise_module, "OUTPUTS", outputs)
    torch.manual_seed(0)
    x = torch.randn(3, 2, height, width, dtype=torch.float64)
    weight = torch.randn(2, 1, size, size, dtype=torch.float64)

    found = passes(lambda x, w: depthwise(x, w, stride), x, weight)

    expected = passes(torch_depthwise(stride), x, weight)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_depthwise_result_is_channels_last() -> None:
    y = depthwise(torch.randn(2, 3, 4, 5), torch.randn(3, 1, 3, 3), 1)

    assert y.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("frozen", ["x", "weight"])
def test_depthwise_leaves_out_a_gradient_that_nobody_wants(frozen: str) -> None:
    x = torch.randn(2, 3, 4, 4, requires_grad=frozen != "x")
    weight = torch.randn(3, 1, 3, 3, requires_grad=frozen != "weight")

    depthwise(x, weight, 1).sum().backward()

    assert (x.grad is None, weight.grad is None) == (frozen == "x", frozen == "weight")


def test_depthwise_operators_say_what_they_return() -> None:
    x, weight = torch.randn(3, 2 * 5 * 5), torch.randn(3, 1, 3, 3)
    matrix = depthwise_module._forward_matrix(weight, 3, 5, 2)
    g = torch.randn(3, 2 * 3 * 3)
    back = depthwise_module._backward_matrix(weight, 2, 3, 5, 2)

    for operator, arguments in (
        (depthwise_module._convolve, (x, weight.requires_grad_(), matrix, 5, 5, 2)),
        (depthwise_module._input_gradient, (g, back, 5, 5, 2, 3)),
        (depthwise_module._weight_gradient, (x, g, 5, 5, 2, 3)),
    ):
        torch.library.opcheck(operator, arguments, test_utils=CHECKS)


def test_some_channels_of_a_map_are_copied_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels count on matrices without gaps."""

    def transpose(x: Tensor) -> Tensor:
        assert x.is_contiguous()
        return x.t().contiguous()

    monkeypatch.setattr(depthwise_module, "transpose", transpose)
    x = torch.randn(2, 6, 5, 5).contiguous(memory_format=torch.channels_last)[:, 1:4]
    weight = torch.randn(3, 1, 3, 3)

    found = depthwise(x, weight, 1)

    torch.testing.assert_close(found, torch_depthwise(1)(x, weight))


def test_maps_are_kept_as_matrices() -> None:
    """Of a map with four axes Inductor keeps a transposed copy, and turns it back later."""
    kept: list[Tensor] = []
    x = torch.randn(2, 3, 8, 8).contiguous(memory_format=torch.channels_last).requires_grad_()
    weight = torch.randn(3, 1, 3, 3, requires_grad=True)

    with torch.autograd.graph.saved_tensors_hooks(lambda one: (kept.append(one), one)[1], id):
        depthwise(x, weight, 1)

    assert [tuple(one.shape) for one in kept] == [(3, 2 * 8 * 8), (3, 1, 3, 3)]


# In Triton


@pytest.mark.skipif(
    version("triton").startswith("3.6.") and version("numpy").startswith("2.4."),
    reason="the interpreter of Triton 3.6 fails with NumPy 2.4",
)
def test_kernels_agree_with_torch_in_an_interpreter() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}

    run = subprocess.run(
        [sys.executable, str(INTERPRETED)],
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
    )

    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines()[-1] == "6 convolutions and 4 transpositions agree"


@pytest.mark.slow
@pytest.mark.parametrize("capability", [80, 90])
@pytest.mark.parametrize("inputs", [3, 16, 32, 64])
def test_kernels_compile_to_few_resources(capability: int, inputs: int) -> None:
    """They fit the 99 KiB of shared memory that every such GPU offers, and spill no register."""
    from reference.compiled import compiled

    from training import conv3x3, transpose

    outputs = max(16, inputs)
    shape = {"H": 512 // outputs, "W": 512 // outputs, "CI": inputs, "CO": outputs}
    tile, depth, warps = conv3x3.FORWARD[inputs]
    forward = compiled(
        conv3x3._product_kernel,
        ["*bf16", "*bf16", "*bf16", "i32"],
        {**shape, "PIXELS": tile, "K": depth, "N": outputs},
        {"num_warps": warps},
        capability,
    )
    tile, depth, warps, stages = conv3x3.WEIGHTS[inputs]
    weights = compiled(
        conv3x3._weight_gradient_kernel,
        ["*bf16", "*bf16", "*fp32", "i32", "i32"],
        {**shape, "PIXELS": tile, "K": depth, "N": outputs},
        {"num_warps": warps, "num_stages": stages},
        capability,
    )

    turned = compiled(
        transpose._transpose_kernel,
        ["*bf16", "*bf16", "i32", "i32"],
        {"TILE": transpose.TILE},
        {"num_warps": 4},
        capability,
    )

    for kernel in (forward, weights, turned):
        assert kernel.shared_bytes <= 99 * 1024
        assert kernel.spilled_bytes == 0


# The choice


def conv(inputs: int, outputs: int, size: int, **options: object) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, size, **options)


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (conv(8, 8, 7, padding=3, groups=8), "depthwise"),
        (conv(8, 8, 3, padding=1, groups=8, stride=2), "depthwise"),
        (conv(8, 8, 5, padding="same", groups=8, bias=False), "depthwise"),
        (conv(16, 64, 3, padding=1), "conv3x3"),
        (conv(3, 16, 3, padding=1), "conv3x3"),
        (conv(16, 65, 3, padding=1), None),
        (conv(16, 16, 3, padding=1, stride=2), None),
        (conv(16, 16, 3), None),
        (conv(16, 16, 3, padding=1, groups=2), None),
        (conv(16, 16, 1), None),
        (conv(8, 16, 7, padding=3, groups=8), None),
        (conv(8, 8, 7, padding=3, groups=8, dilation=2), None),
        (conv(8, 8, 7, padding=3, groups=8, padding_mode="circular"), None),
        (conv(8, 8, (1, 7), padding=(0, 3), groups=8), None),
        (conv(8, 8, 4, padding=2, groups=8), None),
        (conv(8, 8, 7, padding=3, groups=8, stride=(2, 1)), None),
        (conv(8, 8, 1, groups=8), None),
    ],
)
def test_kernels_fit_only_what_they_compute(module: nn.Conv2d, expected: str | None) -> None:
    assert kernel_for(module) == expected


def test_nothing_is_swapped_on_a_cpu() -> None:
    network = create_model("resnet_20")

    choices = use_fast_kernels(network, (8, 3, 32, 32), torch.bfloat16)

    assert choices == []
    assert swapped(network) == []


def swapped(network: nn.Module) -> list[str]:
    classes = tuple(kernels.CLASSES.values())
    return [name for name, module in network.named_modules() if isinstance(module, classes)]


@pytest.fixture
def fake_gpu(monkeypatch: pytest.MonkeyPatch) -> list[Choice]:
    """A GPU that computes depthwise convolutions faster with our kernel, others with cuDNN."""
    asked: list[Choice] = []

    def fake_comparison(
        case: kernels._Case, layers: tuple[str, ...], device: object, dtype: object
    ) -> Choice:
        is_faster = case.kernel == "depthwise"
        choice = Choice(
            layers=layers,
            kernel=case.kernel,
            shape=case.shape,
            cudnn_ms=2.0,
            ours_ms=1.0 if is_faster else 2.0,
            swapped=is_faster,
        )
        asked.append(choice)
        return choice

    def fake_turn(module: nn.Conv2d, images: Tensor) -> torch.dtype | None:
        return images.dtype if module.training else None

    monkeypatch.setattr(kernels, "_is_supported", lambda device, dtype: True)
    monkeypatch.setattr(kernels, "_compare", fake_comparison)
    monkeypatch.setattr(kernels, "_sixteen_bits", fake_turn)
    return asked


def test_each_kind_of_convolution_is_compared_once(fake_gpu: list[Choice]) -> None:
    network = create_model("improved_resnet20_convnext")

    choices = use_fast_kernels(network, (1024, 3, 32, 32), torch.bfloat16)

    assert choices == fake_gpu
    kinds = [(one.kernel, one.shape, len(one.layers)) for one in choices]
    assert kinds == [
        ("conv3x3", (1024, 3, 32, 32), 1),
        ("depthwise", (1024, 64, 32, 32), 3),
        ("depthwise", (1024, 64, 32, 32), 1),  # the same shape at stride 2
        ("depthwise", (1024, 128, 16, 16), 2),
        ("depthwise", (1024, 128, 16, 16), 1),
        ("depthwise", (1024, 256, 8, 8), 2),
    ]
    assert swapped(network) == [name for one in choices[1:] for name in one.layers]


def test_the_first_convolution_needs_no_gradient_of_the_images(fake_gpu: list[Choice]) -> None:
    cases = kernels._candidates(create_model("resnet_20"), (4, 3, 32, 32), torch.bfloat16)

    needs = {case.shape: case.needs_input_gradient for case in cases}
    assert needs == {
        (4, 3, 32, 32): False,
        (4, 16, 32, 32): True,
        (4, 32, 16, 16): True,
        (4, 64, 8, 8): True,
    }


def test_looking_for_convolutions_changes_nothing(fake_gpu: list[Choice]) -> None:
    network = create_model("improved_resnet20_convnext").train()
    frozen = network.get_submodule("stages.0.0").eval()
    before = copy.deepcopy(network.state_dict())

    use_fast_kernels(network, (2, 3, 32, 32), torch.bfloat16)

    after = network.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert network.training
    assert not frozen.training


def test_a_convolution_that_is_called_twice_stays_with_cudnn(fake_gpu: list[Choice]) -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = conv(3, 3, 3, padding=1, groups=3)

        def forward(self, x: Tensor) -> Tensor:
            return self.conv(self.conv(x))

    assert use_fast_kernels(Twice(), (2, 3, 8, 8), torch.bfloat16) == []


def test_a_tensor_beyond_32_bits_stays_with_cudnn(fake_gpu: list[Choice]) -> None:
    network = nn.Sequential(conv(3, 64, 3, padding=1))

    within = use_fast_kernels(network, (2**15, 3, 31, 32), torch.bfloat16)
    beyond = use_fast_kernels(network, (2**15, 3, 32, 32), torch.bfloat16)

    assert (len(within), len(beyond)) == (1, 0)


def test_swapped_convolution_learns_the_same_copied_or_compiled(fake_gpu: list[Choice]) -> None:
    torch.manual_seed(0)
    depthwise_with_bias = conv(4, 4, 7, padding=3, groups=4, stride=2)
    network = nn.Sequential(conv(3, 4, 1), depthwise_with_bias, nn.ReLU(), conv(4, 2, 1)).train()
    images = torch.randn(2, 3, 9, 8)
    expected = gradients(network, network, images)
    use_fast_kernels(network, (2, 3, 9, 8), torch.bfloat16)
    average = AveragedModel(network)
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)

    found = [
        gradients(network, network, images),
        gradients(average, average.module, images),
        gradients(compiled, network, images),
    ]

    assert (swapped(network), swapped(average)) == (["1"], ["module.1"])
    for one in found:
        torch.testing.assert_close(one, expected)


def gradients(call: Callable[[Tensor], Tensor], owner: nn.Module, images: Tensor) -> list[Tensor]:
    """The gradients of the weights of `owner` and what `call` returns."""
    y = call(images)
    return [y.detach(), *torch.autograd.grad(y.square().sum(), list(owner.parameters()))]


def test_swapped_convolution_is_the_plain_one_while_evaluating(fake_gpu: list[Choice]) -> None:
    network = nn.Sequential(conv(3, 3, 7, padding=3, groups=3)).eval()
    images = torch.randn(2, 3, 8, 8)
    expected = network(images)

    use_fast_kernels(network, (2, 3, 8, 8), torch.bfloat16)

    assert swapped(network) == ["0"]
    assert torch.equal(network(images), expected)


def test_restored_network_is_as_before(fake_gpu: list[Choice]) -> None:
    network = create_model("improved_resnet20_convnext")
    use_fast_kernels(network, (2, 3, 32, 32), torch.bfloat16)

    restore(network)

    assert swapped(network) == []
    assert all(type(m) is nn.Conv2d for m in network.modules() if isinstance(m, nn.Conv2d))


# On a GPU


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("inputs", "outputs", "groups", "size", "stride", "image"),
    [
        (64, 64, 64, 7, 1, 32),
        (64, 64, 64, 7, 2, 32),
        (128, 128, 128, 7, 1, 16),
        (24, 24, 24, 5, 2, 9),
        (3, 16, 1, 3, 1, 32),
        (16, 16, 1, 3, 1, 32),
        (32, 32, 1, 3, 1, 16),
        (64, 64, 1, 3, 1, 8),
        (20, 40, 1, 3, 1, 7),
    ],
)
def test_kernels_agree_with_cudnn(
    dtype: torch.dtype, inputs: int, outputs: int, groups: int, size: int, stride: int, image: int
) -> None:
    module = conv(inputs, outputs, size, padding=size // 2, groups=groups, stride=stride).cuda()
    fast = copy.deepcopy(module)
    fast.__class__ = kernels.CLASSES[str(kernel_for(module))]
    images = torch.randn(37, inputs + 2, image, image, device="cuda")[:, 1:-1].requires_grad_()

    def results(layer: nn.Module, enabled: bool) -> tuple[Tensor, ...]:
        with torch.autocast("cuda", dtype, enabled=enabled):
            y = layer(images)
        wanted = (images, *layer.parameters())
        g = torch.randn(y.shape, generator=torch.Generator().manual_seed(1)).to(y)
        return y.float(), *torch.autograd.grad(y, wanted, g)

    found, exact = results(fast, True), results(module, False)

    for one, other in zip(found, exact, strict=True):
        assert one.shape == other.shape
        assert (one - other).norm() < 1e-2 * other.norm()


@pytest.mark.gpu
def test_choice_is_measured_and_lasts() -> None:
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("needs compute capability 8.0")
    network = create_model("improved_resnet20_convnext").cuda()
    network = network.to(memory_format=torch.channels_last)

    choices = use_fast_kernels(network, (256, 3, 32, 32), torch.bfloat16)

    assert [choice.failure for choice in choices] == [None] * 6
    for choice in choices:
        assert choice.cudnn_ms > 0
        assert choice.ours_ms is not None
        assert choice.swapped == (choice.ours_ms < kernels.MARGIN * choice.cudnn_ms)
    names = [name for choice in choices if choice.swapped for name in choice.layers]
    assert swapped(network) == names
    assert use_fast_kernels(network, (256, 3, 32, 32), torch.float32) == []


@pytest.mark.gpu
def test_a_kernel_that_fails_leaves_the_layer_to_cudnn(monkeypatch: pytest.MonkeyPatch) -> None:
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("needs compute capability 8.0")

    def broken(*args: object) -> Tensor:
        raise RuntimeError("no compiler\nand more")

    monkeypatch.setattr(depthwise_module, "depthwise", broken)
    network = nn.Sequential(conv(8, 8, 7, padding=3, groups=8)).cuda()

    (choice,) = use_fast_kernels(network, (2, 8, 8, 8), torch.bfloat16)

    assert replace(choice, cudnn_ms=1.0) == Choice(
        layers=("0",),
        kernel="depthwise",
        shape=(2, 8, 8, 8),
        cudnn_ms=1.0,
        ours_ms=None,
        swapped=False,
        failure="no compiler",
    )
    assert swapped(network) == []
