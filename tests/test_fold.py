import copy

import pytest
import torch
from small_network import expected, images, small_network
from torch import Tensor, nn
from torch.nn import functional as F

from export.fold import fold_batch_norms
from export.program import traced


def folded(network: nn.Module) -> nn.Module:
    network = copy.deepcopy(network)
    return fold_batch_norms(network, traced(network, images(2)))


def norms(network: nn.Module) -> list[str]:
    return [name for name, part in network.named_modules() if isinstance(part, nn.BatchNorm2d)]


def test_norm_after_a_convolution_becomes_part_of_it() -> None:
    network = small_network()

    found = folded(network)

    assert norms(network) == ["stem.1", "norm"]
    assert norms(found) == ["norm"]
    batch = images(5)
    torch.testing.assert_close(found(batch), expected(network, batch), rtol=0, atol=1e-5)


class SeenTwice(nn.Module):
    """The convolution's own output is needed too."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x + self.norm(x)


def test_norm_without_statistics_of_its_own_stays() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4, track_running_stats=False)).eval()

    assert norms(folded(network)) == ["1"]


class UsedTwice(SeenTwice):
    """Two convolutions share the norm."""

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) + self.norm(self.conv(x.flip(3)))


class Standardised(nn.Conv2d):
    """The weight that the convolution sees is computed."""

    def forward(self, x: Tensor) -> Tensor:
        return self._conv_forward(x, self.weight - self.weight.mean(), self.bias)


class Computed(SeenTwice):
    def __init__(self) -> None:
        super().__init__()
        self.conv = Standardised(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x))


class NormAndMore(nn.BatchNorm2d):
    """A norm that does something else as well."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).relu()


class More(Computed):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), NormAndMore(4)


class WeightAlone(SeenTwice):
    """The weight of a convolution goes to another one, which has no bias."""

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(F.conv2d(x, self.conv.weight, stride=2))


class OtherNorm(SeenTwice):
    """The numbers of a norm go to another one, which has more to divide by."""

    def forward(self, x: Tensor) -> Tensor:
        norm = self.norm
        numbers = (norm.running_mean, norm.running_var, norm.weight, norm.bias)
        return F.batch_norm(self.conv(x), *numbers, training=self.training, eps=0.5)


@pytest.mark.parametrize("kind", [SeenTwice, UsedTwice, Computed, More, WeightAlone, OtherNorm])
def test_norm_that_cannot_be_folded_stays(kind: type[nn.Module]) -> None:
    network = kind().train()
    with torch.no_grad():
        network(images(8))
    network.eval()

    found = folded(network)

    assert norms(found) == ["norm"]
    batch = images(3)
    torch.testing.assert_close(found(batch), expected(network, batch), rtol=0, atol=1e-5)
