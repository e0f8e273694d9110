"""SegNeXt, LSKNet, HorNet, ConvNeXt and EdgeNeXt: structure, sizes, and parity with torchvision."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from zoo.errors import ZooError
from zoo.layers import GatedConv, LargeSelectiveKernel, LayerScale, MultiScaleAttention
from zoo.models import create_model


def images(size: int = 32, batch: int = 2) -> Tensor:
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(0))


def on_meta(name: str, **options: object) -> nn.Module:
    with torch.device("meta"):
        return create_model(name, **options)


def map_sizes(model: nn.Module, size: int) -> list[int]:
    x = model.stem(torch.empty(1, 3, size, size, device="meta"))
    sizes = [x.shape[-1]]
    for stage in model.stages:
        x = stage(x)
        sizes.append(x.shape[-1])
    return sizes


def randomise_scales(model: nn.Module) -> None:
    """Layer scales near zero would hide every block from a comparison of logits."""
    generator = torch.Generator().manual_seed(1)
    for name, tensor in model.named_parameters():
        if "gamma" in name:
            tensor.data.copy_(torch.rand(tensor.shape, generator=generator) + 0.5)


def blocks_of(model: nn.Module, kind: str) -> Iterator[nn.Module]:
    return (part for part in model.modules() if type(part).__name__ == kind)


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("segnext_mscan_tiny", [8, 8, 4, 2]),
        ("segnext_mscan_tiny_s1", [32, 32, 16, 8]),
        ("segnext_mscan_tiny_asrun", [16, 16, 8, 4, 2]),
        ("lsknet_tiny", [32, 32, 16, 8, 4]),
        ("hornet_tiny", [32, 32, 16, 8, 4]),
        ("convnext_tiny", [16, 16, 8, 4, 2]),
        ("edgenext_small", [16, 16, 8, 4, 2]),
        ("edgenext_base", [16, 16, 8, 4, 2]),
    ],
)
def test_map_sizes(name: str, sizes: list[int]) -> None:
    assert map_sizes(on_meta(name).eval(), 32) == sizes


@pytest.mark.parametrize(
    ("name", "odd"),
    [
        ("segnext_mscan_tiny", 33),
        ("segnext_mscan_tiny_s1", 9),
        ("segnext_mscan_tiny_asrun", 48),
        ("lsknet_tiny", 27),
        ("hornet_tiny", 40),
        ("convnext_tiny", 48),
        ("edgenext_small", 80),
        ("edgenext_base", 16),
    ],
)
def test_other_sizes(name: str, odd: int) -> None:
    for size in (64, odd):
        model = create_model(name, image_size=size).eval()
        with torch.inference_mode():
            logits = model(images(size))

        assert logits.shape == (2, 100)
        assert logits.isfinite().all()


@pytest.mark.parametrize(
    ("name", "size", "sizes"),
    [
        ("segnext_mscan_tiny", 7, "any size from 8 on"),
        ("segnext_mscan_tiny_asrun", 40, "multiples of 16 from 16 on"),
        ("lsknet_tiny", 0, "any size from 8 on"),
        ("hornet_tiny", 36, "multiples of 8 from 8 on"),
        ("convnext_tiny", 24, "multiples of 16 from 16 on"),
        ("edgenext_small", 33, "multiples of 16 from 16 on"),
        ("edgenext_base", 8, "multiples of 16 from 16 on"),
    ],
)
def test_refused_sizes(name: str, size: int, sizes: str) -> None:
    with pytest.raises(ZooError) as caught:
        create_model(name, image_size=size)

    assert str(caught.value) == f"model {name!r} takes images of {sizes}, got {size}"


@pytest.mark.parametrize(
    ("name", "depths", "kernels"),
    [
        ("segnext_mscan_tiny", [2, 2, 4], [7, 11]),
        ("segnext_mscan_tiny_asrun", [3, 3, 5, 2], [3, 5]),
    ],
)
def test_segnext_attends_in_every_block(name: str, depths: list[int], kernels: list[int]) -> None:
    model = on_meta(name)

    attentions = [
        [part for part in stage.modules() if isinstance(part, MultiScaleAttention)]
        for stage in model.stages
    ]

    assert [len(stage) for stage in attentions] == depths
    for attention in (part for stage in attentions for part in stage):
        assert [strip[1].kernel_size[0] for strip in attention.strips] == kernels


def test_segnext_asrun_shares_the_norm_of_a_block() -> None:
    block = create_model("segnext_mscan_tiny_asrun").stages[0][1].double().train()
    x = torch.randn(4, 32, 5, 5, dtype=torch.float64)

    block(x)

    attended = x + block.attention(nn.functional.batch_norm(x, None, None, training=True))
    expected = 0.9 * 0.1 * x.mean((0, 2, 3)) + 0.1 * attended.mean((0, 2, 3))  # momentum 0.1
    torch.testing.assert_close(block.norm.running_mean, expected, rtol=0, atol=1e-12)


def test_segnext_block_has_no_norm_before_its_mlp() -> None:
    block = create_model("segnext_mscan_tiny").stages[2][1].double().eval()
    x = torch.randn(2, 128, 4, 4, dtype=torch.float64)

    found = block(x)

    attended = x + block.attention[1](x / (1 + 1e-5) ** 0.5)
    first, norm, act, second = block.mlp
    expected = attended + second(act(norm(first(attended))))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_lsknet_stages() -> None:
    model = on_meta("lsknet_tiny")

    selections = [
        sum(isinstance(part, LargeSelectiveKernel) for part in stage.modules())
        for stage in model.stages
    ]
    ratios = [
        stage[1].feed[1].out_channels / stage[1].feed[1].in_channels for stage in model.stages
    ]

    assert selections == [3, 3, 5, 2]
    assert ratios == [8, 8, 4, 4]


def test_lsknet_selects_with_a_shortcut_of_its_own() -> None:
    block = create_model("lsknet_tiny").stages[0][1].double().eval()
    x = torch.randn(2, 32, 6, 6, dtype=torch.float64)

    found = block(x)

    y = x / (1 + 1e-5) ** 0.5  # what a fresh batch norm makes of it
    first, act, kernel, last = block.select
    selected = x + 1e-2 * (y + last(kernel(act(first(y)))))
    expected = selected + 1e-2 * block.feed(selected)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-9)  # the scales began as float32


def test_hornet_orders_grow_with_the_stage() -> None:
    model = on_meta("hornet_tiny")

    orders = [
        [len(part.widths) for part in stage.modules() if isinstance(part, GatedConv)]
        for stage in model.stages
    ]

    assert orders == [[2] * 3, [3] * 3, [4] * 9, [5] * 3]


@pytest.mark.parametrize(("name", "initial"), [("lsknet_tiny", 1e-2), ("hornet_tiny", 1e-6)])
def test_layer_scales_start_near_zero(name: str, initial: float) -> None:
    scales = [part.scale for part in create_model(name).modules() if isinstance(part, LayerScale)]

    assert scales
    assert all((scale == initial).all() for scale in scales)


@pytest.mark.parametrize(
    ("name", "kind", "blocks"), [("lsknet_tiny", "LskBlock", 13), ("hornet_tiny", "HorBlock", 18)]
)
def test_drop_path_rises_linearly(name: str, kind: str, blocks: int) -> None:
    model = on_meta(name, drop_path=0.3)

    rates = [block.drop_path.rate for block in blocks_of(model, kind)]

    assert rates == pytest.approx([0.3 * i / (blocks - 1) for i in range(blocks)])


@pytest.mark.parametrize("name", ["convnext_tiny", "edgenext_small", "cspresnet50"])
def test_drop_path_reaches_the_blocks_of_timm(name: str) -> None:
    model = on_meta(name, drop_path=0.3)

    rates = [part.drop_prob for part in blocks_of(model, "DropPath")]

    assert rates == sorted(rates)
    assert rates[-1] == pytest.approx(0.3)
    assert not list(blocks_of(on_meta(name, drop_path=0.0), "DropPath"))


@pytest.mark.parametrize(
    "name",
    ["lsknet_tiny", "hornet_tiny", "convnext_tiny", "edgenext_base", "resnet_18", "cspresnet50"],
)
@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_drop_path_out_of_range_is_refused(name: str, rate: float) -> None:
    with pytest.raises(ZooError) as caught:
        on_meta(name, drop_path=rate)

    assert "drop path rate must lie in [0, 1), got " in str(caught.value)
    assert name in str(caught.value)


def torchvision_name(name: str) -> str:
    """Where torchvision's ConvNeXt keeps the tensor that timm's calls `name`."""
    if name.startswith("stem."):
        return "features.0." + name.removeprefix("stem.")
    if name.startswith("head."):
        return name.replace("head.norm", "classifier.0").replace("head.fc", "classifier.2")
    _, stage, rest = name.split(".", 2)
    if rest.startswith("downsample."):
        return f"features.{2 * int(stage)}.{rest.removeprefix('downsample.')}"
    _, block, part = rest.split(".", 2)
    for ours, theirs in (
        ("gamma", "layer_scale"),
        ("conv_dw", "block.0"),
        ("norm", "block.2"),
        ("mlp.fc1", "block.3"),
        ("mlp.fc2", "block.5"),
    ):
        part = part.replace(ours, theirs)
    return f"features.{2 * int(stage) + 1}.{block}.{part}"


def test_convnext_agrees_with_torchvision() -> None:
    import torchvision

    ours = create_model("convnext_tiny").eval()
    randomise_scales(ours)
    theirs = torchvision.models.convnext_tiny(num_classes=100).eval()
    theirs.features[0][0].stride, theirs.features[0][0].padding = (2, 2), (1, 1)
    shapes = {name: tensor.shape for name, tensor in theirs.state_dict().items()}
    weights = {torchvision_name(name): tensor for name, tensor in ours.state_dict().items()}
    theirs.load_state_dict({name: weights[name].reshape(shapes[name]) for name in weights})

    with torch.inference_mode():
        found, expected = ours(images()), theirs(images())

    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_edgenext_agrees_with_timm_behind_the_stem() -> None:
    import timm

    ours = create_model("edgenext_small").eval()
    randomise_scales(ours)
    theirs = timm.create_model("edgenext_small", num_classes=100).eval()
    weights = {name: tensor for name, tensor in ours.state_dict().items() if "stem.0." not in name}
    missing, unexpected = theirs.load_state_dict(weights, strict=False)
    theirs.stem = nn.Identity()

    with torch.inference_mode():
        found, expected = ours(images()), theirs(ours.stem(images()))

    assert (missing, unexpected) == (["stem.0.weight", "stem.0.bias"], [])
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def test_edgenext_stem_is_an_unpadded_2x2_convolution() -> None:
    conv, norm = on_meta("edgenext_base").stem

    assert (conv.kernel_size, conv.stride, conv.padding) == ((2, 2), (2, 2), (0, 0))
    assert conv.out_channels == norm.normalized_shape[0] == 80
