import io

import pytest
import torch
from torch import nn

from zoo.checkpoint import load_weights
from zoo.errors import CheckpointError, UnknownModelError, ZooError
from zoo.models import MODELS, create_model, model_spec
from zoo.registry import register_model


def test_unknown_name_lists_the_nearest() -> None:
    with pytest.raises(UnknownModelError) as caught:
        create_model("resnet_21")

    message, _, names = str(caught.value).partition(": did you mean ")
    assert message == "no model named 'resnet_21'"
    assert "resnet_20" in names.rstrip("?").split(" or ")


def test_unknown_name_with_nothing_near_says_where_all_are() -> None:
    with pytest.raises(UnknownModelError, match="no model named 'zzz': zoo-list shows all"):
        model_spec("zzz")


def test_foreign_option_is_refused_by_name() -> None:
    with pytest.raises(ZooError) as caught:
        create_model("resnet_20", drop_path=0.1)

    assert str(caught.value) == (
        "model 'resnet_20' has no option 'drop_path': it takes none but num_classes and image_size"
    )


def test_no_classes_are_refused() -> None:
    with pytest.raises(ZooError, match="num_classes must be 1 or more, got 0"):
        create_model("resnet_20", num_classes=0)


def test_a_name_is_never_registered_twice() -> None:
    with pytest.raises(ValueError, match="'resnet_20' is already defined in family 'resnet'"):

        @register_model(group="baseline", paper="", params=0, macs=0)
        def resnet_20(*, num_classes: int) -> nn.Module:
            return nn.Identity()


def test_an_unknown_group_is_refused() -> None:
    with pytest.raises(ValueError, match="'newcomer' has the unknown group 'other'"):

        @register_model(group="other", paper="", params=0, macs=0)
        def newcomer(*, num_classes: int) -> nn.Module:
            return nn.Identity()

    assert "newcomer" not in MODELS


@pytest.mark.parametrize("rate", [-0.1, 1.0])
def test_an_option_out_of_range_is_one_line(rate: float) -> None:
    with pytest.raises(ZooError) as caught:
        create_model("improved_resnet20_convnext", drop_path=rate)

    assert str(caught.value).startswith("model 'improved_resnet20_convnext': drop path rate must")


def test_the_catalogue_is_read_only() -> None:
    with pytest.raises(TypeError):
        MODELS["other"] = MODELS["resnet_20"]


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
