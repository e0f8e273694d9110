"""The scan of convolutions finds gradients that are wrong and passes those that are right."""

import pytest
from benchmarks.convolution_gradients import Kind, check, error_of, kinds
from torch import Tensor, nn

from zoo.errors import MachineError

SMALL = Kind(
    in_fp32=False,
    channels=(8, 8),
    kernel=(3, 3),
    stride=(1, 1),
    padding=(1, 1),
    dilation=(1, 1),
    groups=1,
    size=(8, 8),
)


class Steeper(nn.Conv2d):
    """Its gradients are half too large."""

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(1.5 * input)


def test_right_gradients_pass(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "benchmarks.convolution_gradients.kinds", lambda model, *, plain: iter([SMALL] * 3)
    )

    assert check(["resnet_20"], plain=False) == 0
    assert (
        "the gradients of 1 kind of convolution are right with 2 and 16 images"
        in capsys.readouterr().out
    )


def test_wrong_gradients_are_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "benchmarks.convolution_gradients.kinds", lambda model, *, plain: iter([SMALL])
    )
    monkeypatch.setattr(Kind, "build", lambda self: Steeper(8, 8, 3, padding=1, bias=False))

    with pytest.raises(MachineError, match="2 of 2 gradients are wrong"):
        check(["resnet_20"], plain=False)

    assert "5.0e-01 of the largest value: 2 images, Kind(" in capsys.readouterr().out


def test_kinds_are_those_that_train() -> None:
    plain, trained = (set(kinds("lsknet_tiny", plain=plain)) for plain in (True, False))

    assert {kind.in_fp32 for kind in plain} == {False}
    assert {kind.dilation for kind in trained if not kind.in_fp32} == {(1, 1)}
    assert any(kind.dilation == (3, 3) and kind.size == (32, 32) for kind in trained)


def test_rounding_is_no_mistake() -> None:
    assert 0 < error_of(SMALL, 2) < 0.02
