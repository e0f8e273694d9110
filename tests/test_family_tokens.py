"""Networks of tokens alone: MLP-Mixer and the vision transformer."""

import numpy as np
import pytest
import torch
from reference import attention as reference
from reference.weights import transplant
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from zoo.errors import ZooError
from zoo.models import MODELS, create_model
from zoo.models.mixer import MixerBlock, Patches

MIXERS = sorted(name for name, spec in MODELS.items() if spec.family == "mixer")
TRANSFORMERS = sorted(name for name, spec in MODELS.items() if spec.family == "vit")
OURS = MIXERS + TRANSFORMERS


def seeded(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=dtype)


def on_meta(name: str, **options: object) -> nn.Module:
    with torch.device("meta"):
        return create_model(name, **options).eval()


def weights(part: nn.Module) -> tuple[np.ndarray, np.ndarray]:
    return part.weight.detach().numpy(), part.bias.detach().numpy()


def test_mixer_block() -> None:
    x = seeded(2, 5, 4, dtype=torch.float64)
    layer = MixerBlock(5, 4, token_hidden=3, channel_hidden=6, drop_path=0.0).double()
    for norm in (layer.token_norm, layer.channel_norm):
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)

    found = layer(x).detach().numpy()

    for image, expected in zip(x.numpy(), found, strict=True):
        y = reference.mixer_block(
            image,
            token_norm=weights(layer.token_norm),
            token_mlp=(weights(layer.token_mlp.first), weights(layer.token_mlp.second)),
            channel_norm=weights(layer.channel_norm),
            channel_mlp=(weights(layer.channel_mlp.first), weights(layer.channel_mlp.second)),
        )
        np.testing.assert_allclose(y, expected, rtol=0, atol=1e-12)


def test_patches_are_tokens_row_by_row() -> None:
    x = seeded(1, 3, 8, 12, dtype=torch.float64)
    layer = Patches(5, 4, stride=4).double()

    tokens = layer(x)

    weight, bias = layer.project.weight, layer.project.bias
    expected = [
        (weight * x[:, :, i : i + 4, j : j + 4]).sum((1, 2, 3)) + bias
        for i in (0, 4)
        for j in (0, 4, 8)
    ]
    torch.testing.assert_close(tokens[0], torch.stack(expected), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "tokens", "width", "token_hidden", "channel_hidden", "depth"),
    [
        ("mlp_mixer_tiny", 64, 192, 32, 768, 12),
        ("mlp_mixer_tiny_asrun", 64, 128, 256, 512, 8),
        ("mlp_mixer_b16", 196, 768, 384, 3072, 12),
        ("mlp_mixer_b4", 64, 768, 384, 3072, 12),
        ("mlp_mixer_b16_asrun", 64, 512, 1024, 2048, 8),
        ("mlp_mixer_nano", 64, 64, 128, 512, 8),
    ],
)
def test_mixers(
    name: str, tokens: int, width: int, token_hidden: int, channel_hidden: int, depth: int
) -> None:
    model = on_meta(name)

    shape = model.stem(torch.empty(2, 3, 32, 32, device="meta")).shape
    blocks = model.stages[0]

    assert shape == (2, tokens, width)
    assert len(blocks) == depth
    for block in blocks:
        assert block.token_mlp.first.weight.shape == (token_hidden, tokens)
        assert block.channel_mlp.first.weight.shape == (channel_hidden, width)


def test_mixer_b16_is_that_of_timm_with_closer_patches() -> None:
    import timm

    torch.manual_seed(0)
    ours = create_model("mlp_mixer_b16").eval()
    theirs = timm.create_model("mixer_b16_224", num_classes=100).eval()
    images = seeded(2, 3, 32, 32)

    transplant(
        ours,
        theirs,
        {
            r"^stem\.project": "stem.proj",
            r"^stages\.0": "blocks",
            r"(token|channel)_mlp": r"mlp_\1s",
            r"mlp_tokens\.first": "mlp_tokens.fc1",
            r"mlp_tokens\.second": "mlp_tokens.fc2",
            r"mlp_channels\.first": "mlp_channels.fc1",
            r"mlp_channels\.second": "mlp_channels.fc2",
            "token_norm": "norm1",
            "channel_norm": "norm2",
        },
    )
    with torch.inference_mode():
        logits = ours(images)
        expected = theirs.forward_head(theirs.norm(theirs.blocks(ours.stem(images))))

    assert logits.std() > 0.1
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["mlp_mixer_nano", "mlp_mixer_tiny"])
def test_layer_norms_subtract_the_shift_of_a_token(name: str) -> None:
    """So the last bias of a token MLP, one number a token, has no influence and no gradient."""
    model = create_model(name).double().eval()
    images = seeded(2, 3, 32, 32, dtype=torch.float64)
    expected = model(images)

    for block in model.stages[0]:
        nn.init.normal_(block.token_mlp.second.bias)

    torch.testing.assert_close(model(images), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("name", "width", "heads"), [("vit_tiny", 192, 3), ("vit_small", 384, 6)])
def test_vit_is_that_of_torchvision(name: str, width: int, heads: int) -> None:
    from torchvision.models import VisionTransformer

    torch.manual_seed(0)
    ours = create_model(name).double().eval()
    theirs = VisionTransformer(
        image_size=32,
        patch_size=4,
        num_layers=12,
        num_heads=heads,
        hidden_dim=width,
        mlp_dim=4 * width,
        num_classes=100,
    )
    theirs = theirs.double().eval()
    for parameter in ours.parameters():  # matrices start small, biases and norms constant
        parameter.data *= 3
        parameter.data += 0.05 * torch.randn(parameter.shape, dtype=torch.float64)

    transplant(
        ours,
        theirs,
        {
            r"^patch_embed\.proj": "conv_proj",
            "^cls_token": "class_token",
            "^pos_embed": "encoder.pos_embedding",
            r"^blocks\.(\d+)": r"encoder.layers.encoder_layer_\1",
            r"^norm": "encoder.ln",
            r"^head": "heads.head",
            r"norm1": "ln_1",
            r"norm2": "ln_2",
            r"attn\.qkv\.": "self_attention.in_proj_",
            r"attn\.proj": "self_attention.out_proj",
            r"mlp\.fc1": "mlp.0",
            r"mlp\.fc2": "mlp.3",
        },
    )
    images = seeded(4, 3, 32, 32, dtype=torch.float64)
    with torch.inference_mode():
        logits, expected = ours(images), theirs(images)

    assert (logits[0] - logits[1]).abs().max() > 0.1  # the images matter
    torch.testing.assert_close(logits, expected, rtol=0, atol=1e-9)


# In millions, convolutions and linear layers alone; then with the products of the attention.
@pytest.mark.parametrize(
    ("name", "dense", "whole"), [("vit_tiny", 345.7, 365.1), ("vit_small", 1381.4, 1420.3)]
)
def test_costs_without_and_with_attention(name: str, dense: float, whole: float) -> None:
    with FlopCounterMode(display=False) as counter:
        on_meta(name)(torch.empty(1, 3, 32, 32, device="meta"))

    # On the meta device attention is two batched products, and nothing else is.
    products = counter.get_flop_counts()["Global"][torch.ops.aten.bmm] // 2

    assert round(MODELS[name].macs / 1e6, 1) == whole
    assert round((MODELS[name].macs - products) / 1e6, 1) == dense


@pytest.mark.parametrize("name", OURS)
def test_drop_path_rises_linearly(name: str) -> None:
    model = on_meta(name, drop_path=0.3)

    drops = [part for part in model.modules() if type(part).__name__ == "DropPath"]
    rates = {getattr(part, "rate", None) or getattr(part, "drop_prob", 0.0) for part in drops}

    depth = 8 if name in ("mlp_mixer_nano", "mlp_mixer_tiny_asrun", "mlp_mixer_b16_asrun") else 12
    rising = [0.3 * i / (depth - 1) for i in range(depth)]
    assert sorted(rates | {0.0}) == pytest.approx(rising)  # timm has an identity in place of 0
    with pytest.raises(ZooError, match=r"rate must lie in \[0, 1\), got 1.0"):
        create_model(name, drop_path=1.0)


@pytest.mark.parametrize("name", [name for name in OURS if MODELS[name].macs < 2e9])
@pytest.mark.parametrize("size", [8, 64])
def test_another_size(name: str, size: int) -> None:
    model = create_model(name, image_size=size, num_classes=7).eval()

    with torch.inference_mode():
        logits = model(seeded(2, 3, size, size))

    assert logits.shape == (2, 7)
    assert logits.isfinite().all()


@pytest.mark.parametrize(
    ("name", "size", "tokens"),
    [("mlp_mixer_b16", 8, 4), ("mlp_mixer_b16", 64, 900), ("mlp_mixer_b4", 64, 256)],
)
def test_another_size_of_the_large_mixers(name: str, size: int, tokens: int) -> None:
    model = on_meta(name, image_size=size)

    images = torch.empty(2, 3, size, size, device="meta")

    assert model.stem(images).shape == (2, tokens, 768)
    assert model(images).shape == (2, 100)


@pytest.mark.parametrize("name", OURS)
def test_sizes_that_would_lose_pixels_are_refused(name: str) -> None:
    for size in (4, 33) if name == "mlp_mixer_b16" else (4, 30, 33):
        with pytest.raises(ZooError, match=f"takes images of multiples of .*, got {size}"):
            create_model(name, image_size=size)


@pytest.mark.parametrize("name", OURS)
def test_a_network_keeps_the_size_that_it_was_built_for(name: str) -> None:
    model = on_meta(name)

    with pytest.raises((RuntimeError, AssertionError)):
        model(torch.empty(2, 3, 64, 64, device="meta"))
