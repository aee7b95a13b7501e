"""Data augmentation of images and videos: crop, flip, colour jitter, RandAugment; the same for all frames of a video.

Every choice is a function of the options, a seed and the picture's size, so a unit has the same bytes each time it is
made. Pillow does the work, as it does for decoding.
"""

from dataclasses import dataclass
from math import exp, log, sqrt

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from pipelines.augment.augment_config import NO_AUGMENT, AugmentConfig
from pipelines.augment.rand_augment import rand_augment

_ASPECTS = (3 / 4, 4 / 3)
"""Width by height of an inception crop, as in Szegedy et al. 2015, "Going deeper with convolutions"."""

_MAX_ATTEMPTS = 10
"""Crops to draw until one fits into the picture, as in torchvision's RandomResizedCrop; then the centre is taken."""

Box = tuple[float, float, float, float]
"""Left, top, right and bottom of a crop, in pixels of the picture."""


@dataclass(frozen=True)
class ImageTransform:
    """The augmentation of one sample's pictures: its options with a seed, which decides every random choice.

    The crop and the other changes have a random number generator each, seeded with (seed, 0) and (seed, 1), so neither
    depends on how many numbers the other draws. Each call starts them anew, so all frames of a video are treated alike.
    Sounds and clouds have (seed, 2) and (seed, 3).

    Attributes:
        augment: Options of the source.
        seed: Seed of the sample.
    """

    augment: AugmentConfig = NO_AUGMENT
    seed: int = 0

    @property
    def min_crop_side(self) -> float:
        """Lower bound of a crop's longer side, as a fraction of the picture's shorter side.

        Decoders that can decode at a reduced size, such as JPEG's, use it to find how far they may reduce.
        """
        shortest = sqrt(self.augment.smallest_area * _ASPECTS[0])
        return shortest if self.augment.crop == "inception" else 1.0

    def crop_box(self, width: int, height: int, aspect: float) -> Box:
        """Return the part of a picture that the model sees.

        Args:
            width: Width of the picture in pixels.
            height: Height of the picture in pixels.
            aspect: Width by height of the model's input, to which the crop is resized. The central crop is the largest
                one of this aspect ratio; an inception crop has its own, and is stretched.
        """
        if self.augment.crop == "inception":
            random = np.random.default_rng([self.seed, 0])
            for _ in range(_MAX_ATTEMPTS):
                area = width * height * random.uniform(self.augment.smallest_area, 1)
                # Uniform in the logarithm: 3:4 and 4:3 are equally likely.
                ratio = exp(random.uniform(log(_ASPECTS[0]), log(_ASPECTS[1])))
                wide, high = sqrt(area * ratio), sqrt(area / ratio)
                if wide <= width and high <= height:
                    left, top = random.uniform(0, width - wide), random.uniform(0, height - high)
                    return left, top, left + wide, top + high
        wide, high = min(width, height * aspect), min(height, width / aspect)
        left, top = (width - wide) / 2, (height - high) / 2
        return left, top, left + wide, top + high

    @property
    def keeps_pixels(self) -> bool:
        """Whether `apply` returns every picture unchanged."""
        return not (self.augment.flip or self.augment.colour or self.augment.operations)

    def apply(self, picture: Image.Image) -> Image.Image:
        """Return a picture mirrored, with colour jitter and with RandAugment, as the options and the seed decide.

        Args:
            picture: Grey or RGB; already cropped.
        """
        if self.keeps_pixels:
            return picture
        random = np.random.default_rng([self.seed, 1])
        # All four are drawn whatever is switched on, so that one option does not change the choices of another.
        mirrored, *factors = random.uniform(size=4)
        if self.augment.flip and mirrored < 0.5:
            picture = ImageOps.mirror(picture)
        if self.augment.colour:
            kinds = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
            for kind, factor in zip(kinds, factors, strict=True):
                picture = kind(picture).enhance(1 + self.augment.colour * (2 * factor - 1))
        return rand_augment(picture, self.augment.operations, self.augment.magnitude, random)


NO_TRANSFORM = ImageTransform()
