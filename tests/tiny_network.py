"""A network of somebody's own: a step of it takes a millisecond, and it draws random numbers."""

import os

import torch
from torch import Tensor, nn


def tiny(num_classes: int) -> nn.Module:
    """One convolution with batch norm and dropout."""
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=4, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, num_classes),
    )


def headed(num_classes: int) -> nn.Module:
    """The same with a classifier of its own, and eight features before it."""
    return Headed(num_classes)


class Headed(nn.Module):
    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Linear(8, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.stem(images).mean(dim=(2, 3)))


class Trap(nn.Module):
    """In training, gives infinity for images whose mean lies above TRAP, of the environment."""

    def forward(self, images: Tensor) -> Tensor:
        is_caught = images.mean((1, 2, 3), keepdim=True) > float(os.environ["TRAP"])
        return images + torch.where(is_caught & self.training, torch.inf, 0.0)


def trap(num_classes: int) -> nn.Module:
    """One that cannot be trained on some image."""
    return nn.Sequential(Trap(), *tiny(num_classes))


def masked(num_classes: int) -> nn.Module:
    """One with a mask as that of causal attention."""
    network = Headed(num_classes)
    network.register_buffer("mask", torch.full((2, 2), -torch.inf).triu(1))
    return network


def tied(num_classes: int) -> nn.Module:
    """Two layers with one weight, and a classifier."""
    network = Headed(num_classes)
    network.stem.append(nn.Conv2d(8, 8, 1))
    network.stem.append(nn.Conv2d(8, 8, 1))
    network.stem[-1].weight = network.stem[-2].weight
    return network


def spare(num_classes: int) -> nn.Module:
    """One with parameters that it does not use."""
    network = tiny(num_classes)
    network.register_parameter("spare", nn.Parameter(torch.ones(3)))
    return network


def dropping(num_classes: int) -> nn.Module:
    """One with a classifier that draws random numbers in training."""
    network = Headed(num_classes)
    network.stem.append(nn.Dropout(0.2))
    return network
