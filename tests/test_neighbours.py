import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from few_images import QUIET, few_images, picture_folder
from torch import nn

import export.cli
import export.use_cli
import profiling.cli
from export import export_model
from profiling import read_records
from training import Runtime, train
from zoo.checkpoint import Checkpoint
from zoo.cost import cost_of_model
from zoo.data import Dataset, load_dataset
from zoo.errors import UnknownModelError, ZooError
from zoo.models import create_model, model_spec
from zoo.neighbours import FAMILIES, SMALL, neighbour

CPU = Runtime(device="cpu")

# The smallest network of each family.
NETWORKS = {
    "resnet": "test_resnet",
    "convnext": "test_convnext",
    "vision_transformer": "test_vit",
    "deit": "deit_tiny_distilled_patch16_224",
    "mlp_mixer": "gmlp_ti16_224",
    "mobilenetv3": "mobilenetv4_conv_small_035",
    "efficientnet": "test_efficientnet",
    "regnet": "regnetx_002",
    "densenet": "densenet121",
    "ghostnet": "ghostnet_050",
    "edgenext": "edgenext_xx_small",
}
# Others whose stem has another shape: three convolutions, a pooling of its own, overlapping
# patches, mixed or conditional kernels, a patch that divides nothing.
SHAPES = (
    *("resnet50d", "resnetblur18", "resnetaa34d", "resnetrs50", "seresnext50_32x4d", "senet154"),
    *("convnext_atto_ols", "convnext_tiny", "convnext_zepto_rms", "regnetv_040", "regnetz_005"),
    *("mixnet_s", "tf_efficientnet_cc_b0_4e", "efficientnet_blur_b0", "mobilenetv4_conv_aa_medium"),
    *("mobilenetv3_small_050", "lcnet_035", "ghostnetv2_100", "ghostnetv3_050"),
    *("densenet264d", "densenetblur121d", "mobilenetv2_035", "efficientnet_es", "edgenext_small"),
)
PATCHES = ("test_vit", "vit_small_patch14_reg4_dinov2", "mixer_s32_224", "resmlp_big_24_224")
MAPS = [name for family, name in NETWORKS.items() if FAMILIES[family].shrink]


@pytest.fixture(scope="module")
def data() -> Dataset:
    return load_dataset("cifar100-mini")


@pytest.fixture(scope="module")
def few(data: Dataset) -> Dataset:
    return few_images(data)


def on_meta(name: str, image_size: int) -> nn.Module:
    with torch.device("meta"):
        return create_model(f"timm:{name}", image_size=image_size).eval()


@pytest.mark.parametrize("name", [*MAPS, *SHAPES])
@pytest.mark.parametrize(("image_size", "last"), [(32, 4), (SMALL, 8)])
def test_small_images_keep_an_eighth_of_their_height(name: str, image_size: int, last: int) -> None:
    network = on_meta(name, image_size)

    features = network.forward_features(torch.empty(2, 3, image_size, image_size, device="meta"))

    assert features.shape[2:] == (last, last)


@pytest.mark.parametrize("name", PATCHES)
def test_small_images_are_cut_into_patches_of_four(name: str) -> None:
    network = on_meta(name, 32)

    cut = network.get_submodule("patch_embed" if hasattr(network, "patch_embed") else "stem")

    assert cut(torch.empty(2, 3, 32, 32, device="meta")).flatten(1, -2).shape[1] == 64
    assert network(torch.empty(2, 3, 32, 32, device="meta")).shape == (2, 100)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_learns(family: str) -> None:
    torch.manual_seed(0)
    network = create_model(f"timm:{NETWORKS[family]}", num_classes=7)

    network(torch.randn(4, 3, 32, 32)).square().sum().backward()

    assert all(parameter.grad is not None for parameter in network.parameters())
    assert neighbour(f"timm:{NETWORKS[family]}").family == family


@pytest.mark.parametrize("name", ["test_resnet", "test_convnext", "test_vit", "test_efficientnet"])
def test_larger_images_meet_the_network_of_timm(name: str) -> None:
    torch.manual_seed(0)
    ours = create_model(f"timm:{name}", num_classes=10, image_size=160).eval()
    theirs = timm.create_model(name, num_classes=10, pretrained=False).eval()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, 160, 160)

    assert torch.equal(ours(images), theirs(images))


@pytest.mark.parametrize("family", FAMILIES)
def test_drop_path_goes_to_the_families_that_take_it(family: str) -> None:
    name = f"timm:{NETWORKS[family]}"
    if not FAMILIES[family].takes_drop_path:
        with pytest.raises(ZooError, match="no option 'drop_path'"):
            create_model(name, drop_path=0.5)
        return

    torch.manual_seed(0)
    network = create_model(name, num_classes=7, drop_path=0.5).eval()

    rates = [getattr(part, "drop_prob", None) or 0.0 for part in network.modules()]
    assert max(rates) == pytest.approx(0.5, abs=0.1)
    with pytest.raises(ZooError, match="drop"):
        create_model(name, drop_path=1.0)


def test_facts_are_counted_when_they_are_asked_for() -> None:
    spec = model_spec("timm:resnet18.a1_in1k")

    network = create_model("timm:resnet18")
    cost = cost_of_model(network)
    assert (spec.params, spec.macs) == (cost.params, cost.macs)
    assert spec.params == 11_220_132  # as resnet_18, whose shortcuts and stem are the same
    assert (spec.name, spec.family, spec.group) == ("timm:resnet18.a1_in1k", "resnet", "timm")
    assert spec.paper
    assert not spec.own_design


def test_a_name_is_checked_without_building(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("built")

    monkeypatch.setattr(timm, "create_model", refuse)

    spec = model_spec("timm:vit_large_patch16_224")

    assert 32 in spec.sizes
    assert 33 not in spec.sizes


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:resnet_18", "no model named 'timm:resnet_18': did you mean timm:resnet"),
        ("timm:swin_tiny_patch4_window7_224", "timm's family swin_transformer, whose stem nobody"),
        ("timm:resnet18.a9", "timm:resnet18 has no weights named 'a9': it has a1_in1k, "),
        ("timm:zoo_resnet_20", "timm:zoo_resnet_20 is a model of the zoo: write resnet_20"),
        ("timm:9", r"timm has no network named '9': choose one of ResNet.* \(resnet\); ConvNeXt"),
        ("timm:hf-hub:timm/resnet18", "no model named|no network named"),
        ("timm:local-dir:/tmp", "no model named|no network named"),
    ],
)
def test_other_names_are_refused(name: str, message: str) -> None:
    with pytest.raises(ZooError, match=message) as caught:
        create_model(name)

    assert "\n" not in str(caught.value)
    assert isinstance(caught.value, UnknownModelError) == ("did you mean" in str(caught.value))


@pytest.mark.parametrize(
    ("name", "size", "sizes"),
    [
        ("timm:resnet18", 7, "any size from 8 on"),
        ("timm:test_vit", 34, "multiples of 4 from 8 to 64, above them of 16"),
        ("timm:test_vit", 100, "multiples of 4 from 8 to 64, above them of 16"),
    ],
)
def test_other_sizes_are_refused(name: str, size: int, sizes: str) -> None:
    with pytest.raises(ZooError, match=f"{name}' takes images of {sizes}, got {size}"):
        create_model(name, image_size=size)


# Through the whole chain


@pytest.mark.slow  # an export takes seconds to half a minute
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_trains_and_exports(family: str, few: Dataset, tmp_path: Path) -> None:
    done = train(f"timm:{NETWORKS[family]}", QUIET, CPU, few, runs=tmp_path)
    artifact = export_model(done, data=few)

    assert done.path.name == f"timm-{NETWORKS[family]}-s0"
    assert artifact.parity.passed
    assert artifact.accuracy.top1 == pytest.approx(done.meta.test_top1, abs=0.02)


@pytest.mark.slow
def test_commands_take_a_network_of_timm(
    data: Dataset,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from training.cli import main

    monkeypatch.chdir(tmp_path)
    dataset = picture_folder(data, tmp_path / "pictures")
    options = ("--recipe", "smoke", "--epochs", "1", "--batch-size", "10", "--device", "cpu")

    codes = [
        main(["timm:test_convnext", "--dataset", dataset, "--image-size", "40", *options]),
        export.cli.main([]),
        export.use_cli.main_eval(["runs/timm-test_convnext-s0/artifacts/onnx-fp32.onnx", "--json"]),
    ]
    out = capsys.readouterr().out
    codes.append(profiling.cli.main(["--batch", "2", "--budget", "0.2", "--backend", "eager,onnx"]))

    run = Checkpoint.open("runs/timm-test_convnext-s0")
    manifest = json.loads((run.path / "artifacts" / "onnx-fp32.json").read_text())
    records = read_records(run.path)
    assert codes == [0] * 4
    assert json.loads(out[out.index("{") :])["top1"] == manifest["accuracy"]["top1"]
    assert manifest["accuracy"]["top1"] == run.meta.test_top1
    assert manifest["preprocessing"]["image_size"] == 40
    assert [record.image_shape for record in records] == [(3, 40, 40)] * 2
    assert [record.input for record in records] == ["test images"] * 2
    assert records[0].macs == cost_of_model(run.model(), (3, 40, 40)).macs


def test_the_exported_file_says_how_it_is_fed(data: Dataset, few: Dataset, tmp_path: Path) -> None:
    import onnxruntime

    done = train("timm:test_vit", QUIET, CPU, few, runs=tmp_path, image_size=80)

    artifact = export_model(done, data=few)

    session = onnxruntime.InferenceSession(artifact.path, providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    preprocessing = done.meta.input_preprocessing
    assert (metadata["image_size"], metadata["crop_pct"]) == ("80", "1.0")
    assert metadata["interpolation"] == "bicubic"
    assert json.loads(metadata["mean"]) == list(preprocessing.mean)
    (logits,) = session.run(
        None, {"images": preprocessing.to_batch(few.test.images).contiguous().numpy()}
    )
    with torch.inference_mode():
        expected = done.model()(preprocessing.to_batch(few.test.images)).numpy()
    np.testing.assert_allclose(logits, expected, rtol=0, atol=artifact.parity.limit)
