import subprocess
import sys

import pytest
import timm
import torch

from zoo.data import MEAN, STD
from zoo.errors import ZooError
from zoo.models import MODELS, create_model

CHECK = """
assert len(timm.list_models("zoo_*")) == len(zoo.models.list_models())
model = timm.create_model("zoo_resnet_20", num_classes=10)
assert type(model) is type(zoo.models.create_model("resnet_20"))
assert model.head.out_features == 10
assert not any(type(finder).__name__ == "_Hook" for finder in sys.meta_path)
assert "exec_module" not in vars(timm.models.__spec__.loader)
"""


def run(code: str) -> None:
    answer = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"import sys\n{code}"], capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stderr


def test_our_models_are_there_when_timm_comes_first() -> None:
    run(f"import timm\nimport zoo.models\n{CHECK}")


def test_our_models_are_there_when_we_come_first() -> None:
    run(f"import zoo.models\nassert 'timm' not in sys.modules\nimport timm\n{CHECK}")


def test_our_models_are_there_when_the_zoo_itself_imports_timm() -> None:
    run(f"import zoo.models\nzoo.models.create_model('timm:test_resnet')\nimport timm\n{CHECK}")


def test_our_models_are_there_in_a_part_of_timm() -> None:
    run(f"import zoo.models\nfrom timm.models.resnet import ResNet\nimport timm\n{CHECK}")


def test_our_models_are_there_after_somebody_only_looked() -> None:
    look = "import importlib.util\nassert importlib.util.find_spec('timm.models')"
    run(f"import zoo.models\n{look}\n{look}\nimport timm\n{CHECK}")


def test_timm_lists_every_model_of_ours() -> None:
    assert set(timm.list_models("zoo_*")) == {f"zoo_{name}" for name in MODELS}
    assert timm.list_models(module="timm_registry") == timm.list_models("zoo_*")


def test_timm_knows_how_our_models_are_fed() -> None:
    model = timm.create_model("zoo_resnet_20")

    facts = timm.data.resolve_model_data_config(model)

    assert (facts["mean"], facts["std"]) == (MEAN, STD)
    assert (facts["input_size"], facts["crop_pct"]) == ((3, 32, 32), 1.0)
    assert model.num_classes == model.default_cfg["num_classes"] == 100
    assert timm.models.get_pretrained_cfg("zoo_resnet_20").input_size == (3, 32, 32)


def test_the_options_of_timm_are_ours() -> None:
    """Those that timm's own training script passes to every network."""
    torch.manual_seed(0)
    theirs = timm.create_model(
        "zoo_vit_tiny",
        num_classes=10,
        img_size=64,
        drop_path_rate=0.2,
        drop_rate=0.0,
        in_chans=3,
        global_pool=None,
        drop_block_rate=None,
    )
    torch.manual_seed(0)
    ours = create_model("vit_tiny", num_classes=10, image_size=64, drop_path=0.2)

    assert theirs.pretrained_cfg["input_size"] == (3, 64, 64)
    for key, tensor in ours.state_dict().items():
        assert torch.equal(theirs.state_dict()[key], tensor), key


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"in_chans": 1}, "zoo_resnet_20 is built by the zoo, which has no option 'in_chans'"),
        ({"drop_rate": 0.5}, "no option 'drop_rate'"),
        ({"features_only": True}, "model 'resnet_20' has no option 'features_only'"),
        ({"drop_path_rate": 0.1}, "model 'resnet_20' has no option 'drop_path'"),
    ],
)
def test_other_options_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ZooError, match=message):
        timm.create_model("zoo_resnet_20", **options)


def test_pretrained_means_our_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("ZOO_WEIGHTS", raising=False)
    monkeypatch.setattr("zoo.pretrained.available", lambda: ("resnet_20",))

    with pytest.raises(ZooError, match="there are no weights of 'resnet_56' in the package, which"):
        timm.create_model("zoo_resnet_56", pretrained=True)
