"""A network that is written and compiled in seconds, for the tests of export targets."""

import torch
from model_checks import random_images
from torch import Tensor, nn

SIZE = 16  # pixels


class SmallNetwork(nn.Module):
    """A convolution with its norm, a norm before a convolution, and the parts of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16))
        self.norm = nn.BatchNorm2d(16)
        self.conv = nn.Conv2d(16, 16, 3, stride=2, padding=1)
        self.layer_norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.norm(self.stem(x).relu()))
        tokens = self.layer_norm(x.flatten(2).transpose(1, 2))  # (B, N, D)
        weights = (tokens @ tokens.transpose(1, 2)).mul(0.1).softmax(-1)
        return self.head((weights @ tokens).mean(1))


def small_network() -> nn.Module:
    """The same in every call, in inference mode, with norms that have seen images."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = SmallNetwork()
        for norm in (network.stem[1], network.norm):
            norm.momentum = 1.0  # the statistics of these very images
        with torch.no_grad():
            network(images(32))
    return network.eval()


def images(batch: int) -> Tensor:
    """Normalised images of the network's size."""
    return random_images(batch, size=SIZE)


def expected(network: nn.Module, batch: Tensor) -> Tensor:
    """What eager mode makes of them."""
    with torch.no_grad():
        logits: Tensor = network(batch)
    return logits
