"""A network without its classifier."""

import torch
from torch import Tensor, nn

from zoo.adopt import classifiers
from zoo.errors import ZooError, first_line


class Backbone(nn.Module):
    """What a network computes before its classifier, as one vector for each image.

    `body` is the network itself, whose tensors keep their names; its classifier is gone.

    Shapes:
        (B, 3, S, S) -> (B, width). Maps (B, C, H, W) are averaged over their places.

    Raises:
        ZooError: the network does not say what its classifier is, or needs it to run or to give one
            vector.
    """

    def __init__(self, network: nn.Module, *, name: str, image_size: int) -> None:
        super().__init__()
        heads = classifiers(network)
        if not heads:
            raise ZooError(
                f"pre-training needs to know the classifier of {name}, and it has neither a module "
                "`head` with parameters nor a method get_classifier(): name its last layer `head`"
            )
        for head in heads:
            network.set_submodule(head, nn.Identity())
        self.body = network
        was_training = network.training
        network.eval()
        try:
            with torch.no_grad():
                found = network(torch.zeros(2, 3, image_size, image_size))
        except Exception as reason:  # whatever the user's code raises
            raise ZooError(
                f"{name} does not run without its classifier ({first_line(reason)}): use it in "
                "forward as the last module that is called, and in no other way"
            ) from reason
        network.train(was_training)
        if not isinstance(found, Tensor) or found.ndim not in (2, 4):
            raise ZooError(f"{name} gives more than one vector for an image: choose another model")
        self.width = found.shape[1]

    def forward(self, images: Tensor) -> Tensor:
        """Features of a batch."""
        found: Tensor = self.body(images)
        return found.mean(dim=(2, 3)) if found.ndim == 4 else found
