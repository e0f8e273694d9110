import io

import pytest
import torch
from torch import Tensor, nn

from zoo.checkpoint import load_weights
from zoo.errors import CheckpointError, UnknownModelError, ZooError
from zoo.models import MODELS, create_model, list_models, model_spec
from zoo.registry import register_model

ALL = pytest.mark.parametrize("name", sorted(MODELS))


@pytest.fixture
def images() -> Tensor:
    return torch.randn(5, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_the_catalogue_holds_the_promised_names() -> None:
    assert list_models() == (
        "ecanet20_adaptive",
        "ghost_resnet_20",
        "improved_resnet20_convnext",
        "resnet_20",
        "resnet_32",
        "resnet_56",
    )


@ALL
def test_parameters_are_exactly_as_promised(name: str) -> None:
    model = create_model(name)

    counted = sum(p.numel() for p in model.parameters() if p.requires_grad)

    assert counted == MODELS[name].params


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("resnet_20", 278_324),
        ("resnet_32", 472_756),
        ("resnet_56", 861_620),
        ("ecanet20_adaptive", 278_351),
        ("improved_resnet20_convnext", 174_868),
        ("ghost_resnet_20", 149_060),
    ],
)
def test_promises_are_the_published_counts(name: str, params: int) -> None:
    assert MODELS[name].params == params


@ALL
@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("num_classes", [100, 7])
def test_logits_shape(name: str, batch: int, num_classes: int, images: Tensor) -> None:
    model = create_model(name, num_classes=num_classes).eval()

    logits = model(images[:batch])

    assert logits.shape == (batch, num_classes)
    assert logits.isfinite().all()


@ALL
def test_every_parameter_gets_a_gradient(name: str, images: Tensor) -> None:
    torch.manual_seed(0)
    model = create_model(name, **({"drop_path": 0.0} if "improved" in name else {})).train()

    model(images).square().sum().backward()

    for key, parameter in model.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().max() > 0, key


@ALL
def test_one_graph_under_compile(name: str, images: Tensor) -> None:
    model = create_model(name).eval()
    torch._dynamo.reset()

    logits = torch.compile(model, fullgraph=True, backend="eager")(images)

    torch.testing.assert_close(logits, model(images))


@ALL
def test_torch_export_with_a_dynamic_batch(name: str, images: Tensor) -> None:
    model = create_model(name).eval()
    batch = torch.export.Dim("batch", min=1, max=64)

    program = torch.export.export(model, (images[:2],), dynamic_shapes=({0: batch},))

    torch.testing.assert_close(program.module()(images), model(images))


@ALL
def test_weights_survive_a_round_trip(name: str, images: Tensor, tmp_path) -> None:
    import safetensors.torch

    first, second = create_model(name).eval(), create_model(name).eval()
    path = tmp_path / "weights.safetensors"

    safetensors.torch.save_file(first.state_dict(), path)
    load_weights(second, safetensors.torch.load_file(path), source=path, name=name)

    torch.testing.assert_close(second(images), first(images), rtol=0, atol=0)


@ALL
def test_channels_last_gives_the_same_logits(name: str, images: Tensor) -> None:
    model = create_model(name).eval()
    expected = model(images)

    model = model.to(memory_format=torch.channels_last)
    logits = model(images.contiguous(memory_format=torch.channels_last))

    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-5)


@ALL
def test_builds_on_the_meta_device(name: str) -> None:
    with torch.device("meta"):
        logits = create_model(name)(torch.empty(2, 3, 32, 32))

    assert logits.shape == (2, 100)


@ALL
def test_maps_shrink_as_the_paper_says(name: str, images: Tensor) -> None:
    model = create_model(name).eval()

    x = model.stem(images)
    sizes = [x.shape[-1]]
    for stage in model.stages:
        x = stage(x)
        sizes.append(x.shape[-1])

    assert sizes == [32, 32, 16, 8]


def test_shortcuts_are_projections_only_where_the_shape_changes() -> None:
    shortcuts = [block.shortcut for stage in create_model("resnet_56").stages for block in stage]

    projected = [i for i, module in enumerate(shortcuts) if not isinstance(module, nn.Identity)]

    assert projected == [9, 18]


def test_drop_path_rises_linearly() -> None:
    model = create_model("improved_resnet20_convnext", drop_path=0.4)

    rates = [block.drop_path.rate for stage in model.stages for block in stage]

    assert rates == pytest.approx([0.05 * i for i in range(9)])


def test_hidden_width_counts_from_the_input() -> None:
    model = create_model("improved_resnet20_convnext")

    hidden = [block.branch[1][0].out_channels for stage in model.stages for block in stage]

    assert hidden == [64, 64, 64, 64, 128, 128, 128, 256, 256]


def test_unknown_name_lists_the_nearest() -> None:
    with pytest.raises(UnknownModelError) as caught:
        create_model("resnet_21")

    message, _, names = str(caught.value).partition(": did you mean ")
    assert message == "no model named 'resnet_21'"
    assert set(names.rstrip("?").split(" or ")) == {"resnet_20", "resnet_32", "resnet_56"}


def test_unknown_name_with_nothing_near_lists_all() -> None:
    with pytest.raises(UnknownModelError, match="choose one of ecanet20_adaptive, ghost"):
        model_spec("zzz")


def test_foreign_option_is_refused_by_name() -> None:
    with pytest.raises(ZooError) as caught:
        create_model("resnet_20", drop_path=0.1)

    assert str(caught.value) == (
        "model 'resnet_20' has no option 'drop_path': it takes none but num_classes"
    )


def test_no_classes_are_refused() -> None:
    with pytest.raises(ZooError, match="num_classes must be 1 or more, got 0"):
        create_model("resnet_20", num_classes=0)


def test_a_name_is_never_registered_twice() -> None:
    with pytest.raises(ValueError, match="'resnet_20' is already defined in family 'resnet'"):

        @register_model(paper="", params=0)
        def resnet_20(*, num_classes: int) -> nn.Module:
            return nn.Identity()


def test_the_catalogue_is_read_only() -> None:
    with pytest.raises(TypeError):
        MODELS["other"] = MODELS["resnet_20"]  # type: ignore[index]


def test_weights_of_another_model_are_refused(tmp_path) -> None:
    source = tmp_path / "weights.safetensors"

    with pytest.raises(CheckpointError, match="another model than resnet_32: .* tensors are miss"):
        load_weights(
            create_model("resnet_32"),
            create_model("resnet_20").state_dict(),
            source=source,
            name="resnet_32",
        )


def test_models_pickle_free_state_has_plain_names() -> None:
    buffer = io.BytesIO()
    torch.save(create_model("ghost_resnet_20").state_dict(), buffer)

    names = torch.load(io.BytesIO(buffer.getvalue()), weights_only=True).keys()

    assert not any("_orig_mod" in name or name.startswith("module.") for name in names)
