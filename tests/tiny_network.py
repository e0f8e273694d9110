"""A network of somebody's own: a step of it takes a millisecond, and it draws random numbers."""

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


def spare(num_classes: int) -> nn.Module:
    """One with parameters that it does not use."""
    network = tiny(num_classes)
    network.register_parameter("spare", nn.Parameter(torch.ones(3)))
    return network
