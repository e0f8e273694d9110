import pytest
import torch

from training.precision import resolve_precision, slow_format
from zoo.errors import ZooError


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

    assert resolve_precision("auto", torch.device("cpu")) == precision


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

    told = slow_format(precision, torch.device("cpu"))

    assert (told is not None and "--set precision=fp32" in told) == is_slow
    assert slow_format(precision, torch.device("cuda")) is None


def test_precision_that_the_device_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("training.precision.cpu_flags", lambda: ("avx2",))
    with pytest.raises(
        ZooError, match=r"precision fp16 needs a GPU: begin with --set precision=fp32 on"
    ):
        resolve_precision("fp16", torch.device("cpu"))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (7, 0))
    with pytest.raises(ZooError, match=r"bf16 needs compute capability 8.0.*precision=fp16"):
        resolve_precision("bf16", torch.device("cuda"))
