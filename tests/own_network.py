"""A network of a user's own, which a run names as own_network:small."""

from torch import Tensor, nn


class Small(nn.Module):
    """Two convolutions and a head: written and quantised in seconds."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            *(nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
            *(nn.Conv2d(16, 32, 3, stride=2, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
            *(nn.AdaptiveAvgPool2d(4), nn.Flatten()),
        )
        self.head = nn.Linear(32 * 16, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """(B, 3, 32, 32) -> (B, K)."""
        logits: Tensor = self.head(self.body(images))
        return logits


def small(*, num_classes: int) -> nn.Module:
    return Small(num_classes)
