"""What pre-training without labels asks of a backbone: SimCLR, MoCo v2 and BYOL.

Heads and losses are those of the library lightly.
"""

import copy
import math
from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor, nn

from training.backbone import Backbone
from training.philox import Numbers
from training.pretraining import Pretraining
from zoo.errors import MissingPackageError

SHUFFLE = 7  # the random numbers that shuffle MoCo's keys
KEY_GROUPS, LEAST_GROUP = 8, 16  # groups of keys with batch statistics of their own, images in one


class Method(Protocol):
    """A loss over two views of each image, with the networks that it needs."""

    learns: nn.Module  # what the optimiser changes: the backbone under its heads
    rest: nn.Module  # what else has tensors: targets, queue

    def loss(self, first: Tensor, second: Tensor, numbers: Numbers) -> Tensor:
        """How far the two views of each image are apart: (B, 3, S, S) twice -> ()."""
        ...

    def follow(self, done: float) -> None:
        """Let the targets follow after an optimiser step; `done` is the share of all steps."""
        ...


def require_lightly() -> None:
    """Check that heads and losses can be imported.

    Raises:
        MissingPackageError: lightly, or a package that it needs, is not installed.
    """
    try:
        import lightly.loss
        import lightly.models.modules.heads  # noqa: F401  # only to see whether it is there
    except ImportError as reason:
        missing = (reason.name or "lightly").partition(".")[0]
        raise MissingPackageError(missing, extra="ssl", needed_by="zoo-pretrain") from None


def make_method(settings: Pretraining, backbone: Backbone) -> Method:
    """The method of these settings around a backbone."""
    require_lightly()
    made: dict[str, Callable[[Pretraining, Backbone], Method]] = {
        "simclr": SimClr,
        "moco": Moco,
        "byol": Byol,
    }
    return made[settings.name](settings, backbone)


class SimClr:
    """Tell the other view of an image from all views of all other images of the batch.

    Source:
        Chen et al. 2020, arXiv:2002.05709.
    """

    def __init__(self, settings: Pretraining, backbone: Backbone) -> None:
        from lightly.loss import NTXentLoss
        from lightly.models.modules.heads import SimCLRProjectionHead

        head = SimCLRProjectionHead(backbone.width, settings.hidden, settings.projection)
        self.learns: nn.Module = nn.Sequential(backbone, head)
        self.rest: nn.Module = NTXentLoss(temperature=settings.temperature)

    def loss(self, first: Tensor, second: Tensor, numbers: Numbers) -> Tensor:
        """The contrastive loss; batch norms see both views together."""
        one, other = self.learns(torch.cat((first, second))).chunk(2)
        return _apart(self.rest, one, other)

    def follow(self, done: float) -> None:
        """There are no targets."""


class Moco:
    """Tell the other view of an image from views of earlier batches, by a network that lags behind.

    Keys are computed in shuffled groups, each with batch statistics of its own, so that those do
    not give away which images belong together.

    Source:
        He et al. 2020, arXiv:1911.05722, section 3.3, with the head of Chen et al. 2020,
        arXiv:2003.04297.
    """

    def __init__(self, settings: Pretraining, backbone: Backbone) -> None:
        from lightly.loss import NTXentLoss
        from lightly.models.modules.heads import MoCoProjectionHead

        head = MoCoProjectionHead(backbone.width, settings.hidden, settings.projection)
        self.learns: nn.Module = nn.Sequential(backbone, head)
        self.keys = copy.deepcopy(self.learns).requires_grad_(False)
        queue = (settings.queue, settings.projection)
        self.contrast = NTXentLoss(temperature=settings.temperature, memory_bank_size=queue)
        self.rest: nn.Module = nn.ModuleList((self.keys, self.contrast))
        self.momentum = settings.target_momentum

    def loss(self, first: Tensor, second: Tensor, numbers: Numbers) -> Tensor:
        """The contrastive loss; the keys join the queue."""
        queries = self.learns(first)
        with torch.no_grad():
            order = numbers.uniforms(SHUFFLE, 1).squeeze(1).argsort()
            groups = max(1, min(KEY_GROUPS, len(order) // LEAST_GROUP))
            keys = torch.cat([self.keys(part) for part in second[order].chunk(groups)])
            keys = keys[order.argsort()]
        return _apart(self.contrast, queries, keys)

    def follow(self, done: float) -> None:
        """Move the network of the keys towards the other one."""
        approach(self.keys, self.learns, self.momentum)


class Byol:
    """Predict, from one view, what a network that lags behind says of the other.

    Source:
        Grill et al. 2020, arXiv:2006.07733.
    """

    def __init__(self, settings: Pretraining, backbone: Backbone) -> None:
        from lightly.loss import NegativeCosineSimilarity
        from lightly.models.modules.heads import BYOLPredictionHead, BYOLProjectionHead

        inner, outer = settings.hidden, settings.projection
        self.online = nn.Sequential(backbone, BYOLProjectionHead(backbone.width, inner, outer))
        self.learns: nn.Module = nn.Sequential(self.online, BYOLPredictionHead(outer, inner, outer))
        self.rest: nn.Module = copy.deepcopy(self.online).requires_grad_(False)
        self.similarity = NegativeCosineSimilarity()
        self.momentum = settings.target_momentum

    def loss(self, first: Tensor, second: Tensor, numbers: Numbers) -> Tensor:
        """Minus the cosine, mean of both directions."""
        with torch.no_grad():
            wanted = [self.rest(view) for view in (second, first)]
        said = [self.learns(view) for view in (first, second)]
        one, other = (_apart(self.similarity, *pair) for pair in zip(said, wanted, strict=True))
        return (one + other) / 2

    def follow(self, done: float) -> None:
        """Move the target towards the online network, by less and less."""
        kept = 1 - (1 - self.momentum) * (math.cos(math.pi * done) + 1) / 2
        approach(self.rest, self.online, kept)


@torch.no_grad()
def approach(target: nn.Module, network: nn.Module, momentum: float) -> None:
    """Move the parameters of `target` towards those of `network`, by 1 - momentum of the way.

    Batch norms keep the statistics of what they saw themselves.
    """
    mine: list[Tensor] = [*target.parameters()]
    theirs: list[Tensor] = [*network.parameters()]
    torch._foreach_lerp_(mine, theirs, 1 - momentum)


def _apart(loss: nn.Module, one: Tensor, other: Tensor) -> Tensor:
    """The loss between two sides, in fp32: half precision would round close similarities off."""
    with torch.autocast(one.device.type, enabled=False):
        found: Tensor = loss(one.float(), other.float())
    return found
