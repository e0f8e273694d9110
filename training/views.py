"""Views of an image, as pre-training without labels compares them."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from training import jitter, trivial
from training.augment import Augmentation, Policy, first_that_fits
from training.philox import Numbers
from training.pretraining import Pretraining
from zoo.preprocess import Preprocessing

ATTEMPTS = 10  # crops tried before the whole image is taken
RATIO = (3 / 4, 4 / 3)  # width of a crop by its height, log-uniform
UNTOUCHED = Policy(crop_padding=0, flip_p=0.0, augment="none", erase_p=0.0)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ViewDraw:
    """The random choices for one view of each image of a batch, on its device.

    Shapes:
        box (B, 4) int64: top, left, height, width; the flags (B,) bool; jitter (B, n) in [0, 1).
    """

    box: Tensor
    is_flipped: Tensor
    is_jittered: Tensor
    is_grey: Tensor
    jitter: Tensor


class Views:
    """Random resized crop, flip, colour jitter and grey, with static shapes on the device.

    Source:
        Chen et al. 2020, arXiv:2002.05709, appendix B.9, which leaves blur out for small images,
        with the details of `torchvision.transforms.v2`.
    """

    def __init__(
        self,
        settings: Pretraining,
        preprocessing: Preprocessing,
        *,
        size: int,
        device: torch.device,
        channels_last: bool = True,
    ) -> None:
        self.settings, self.size = settings, size
        self.untouched = Augmentation(
            UNTOUCHED, preprocessing, size=size, device=device, channels_last=channels_last
        )
        amounts = [settings.jitter] * 3 + [settings.jitter / 4]
        self.amounts = torch.tensor(amounts, device=device)
        self.all_grey = torch.tensor(-1.0, device=device)

    def __call__(self, stored: Tensor, numbers: Numbers, *, part: int) -> Tensor:
        """One view of each image, normalised; `part` says which random numbers it draws.

        Shapes:
            (B, 3, H, H) uint8 -> (B, 3, S, S) float32.
        """
        return self.untouched.plain(self.apply(stored, self.draw(numbers, part)))

    def draw(self, numbers: Numbers, part: int) -> ViewDraw:
        """Choose what a view shows of each image."""
        settings = self.settings
        u = numbers.uniforms(part, 2 * ATTEMPTS + 5 + jitter.UNIFORMS)
        crop, chances, jitters = torch.split(u, [2 * ATTEMPTS + 2, 3, jitter.UNIFORMS], dim=1)
        return ViewDraw(
            box=boxes(crop, settings.crop_area, self.size),
            is_flipped=chances[:, 0] < settings.flip_p,
            is_jittered=chances[:, 1] < settings.jitter_p,
            is_grey=chances[:, 2] < settings.grey_p,
            jitter=jitters,
        )

    def apply(self, stored: Tensor, drawn: ViewDraw) -> Tensor:
        """Change stored images as drawn: (B, 3, H, H) uint8 -> (B, 3, H, H) uint8."""
        images = resized_crop(stored, drawn.box)
        images = torch.where(_each(drawn.is_flipped), images.flip(3), images)
        jittered = jitter.color_jitter(images, self.amounts, drawn.jitter)
        images = torch.where(_each(drawn.is_jittered), jittered, images)
        return torch.where(_each(drawn.is_grey), trivial.color(images, self.all_grey), images)


def boxes(u: Tensor, least_area: float, size: int) -> Tensor:
    """Parts of images: of ten random ones the first that fits, else the whole.

    Their area is uniform between `least_area` and all of an image.

    Shapes:
        (B, 22) in [0, 1) -> (B, 4) int64: top, left, height, width.
    """
    area, ratio, corner = torch.split(u.double(), [ATTEMPTS, ATTEMPTS, 2], dim=1)
    area = (least_area + (1 - least_area) * area) * size * size
    narrow, wide = (math.log(edge) for edge in RATIO)
    ratio = (narrow + (wide - narrow) * ratio).exp()
    sides = torch.stack((area / ratio, area * ratio), dim=2).sqrt().round()  # (B, 10, 2)
    sides, fits = first_that_fits(sides, ((sides >= 1) & (sides <= size)).all(dim=2))
    sides = torch.where(fits, sides, float(size))  # (B, 2)
    corner = (corner * (size - sides + 1)).floor()
    return torch.cat((corner, sides), dim=1).long()


def resized_crop(images: Tensor, box: Tensor) -> Tensor:
    """Cut a part out of each image and bring it to the size of the whole, bilinearly.

    Each value is that of `torchvision.transforms.v2.functional.resized_crop`, or one level more or
    less: there rows and columns are rounded one after the other.

    Shapes:
        (B, 3, S, S) uint8, (B, 4) int64: top, left, height, width -> (B, 3, S, S) uint8.
    """
    size = images.shape[-1]
    middles = torch.arange(size, device=images.device) + 0.5
    first, sides = box[:, :2, None].double(), box[:, 2:, None].double()  # (B, 2, 1) each
    places = (middles * sides / size - 0.5).clamp(min=0.0).minimum(sides - 1) + first  # (B, 2, S)
    rows, columns = (places * 2 / (size - 1) - 1).float().unbind(1)
    grid = torch.stack(
        (columns[:, None, :].expand(-1, size, -1), rows[:, :, None].expand(-1, -1, size)), dim=3
    )
    found = F.grid_sample(
        images.float(), grid, mode="bilinear", padding_mode="border", align_corners=True
    )
    return found.round_().clamp_(0, 255).to(torch.uint8)


def _each(flags: Tensor) -> Tensor:
    return flags.view(-1, 1, 1, 1)
