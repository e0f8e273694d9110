"""Training the classifier alone: everything before it stays as it is, to the last bit."""

from torch import nn

from zoo.adopt import classifiers
from zoo.errors import ZooError


class Frozen:
    """A network of which only the classifier takes gradients.

    Raises:
        ZooError: the network does not say what its classifier is.
    """

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.heads = tuple(classifiers(network).values())
        if not self.heads:
            raise ZooError(
                "freeze_backbone needs to know the classifier, and this network has neither a "
                "module `head` with parameters nor a method get_classifier(): name the last layer "
                "`head`, or leave --freeze-backbone out"
            )
        network.requires_grad_(False)
        for head in self.heads:
            head.requires_grad_(True)

    def keep_still(self) -> None:
        """Let the backbone compute as in inference: its batch norms learn nothing more."""
        self.network.eval()
        for head in self.heads:
            head.train()
