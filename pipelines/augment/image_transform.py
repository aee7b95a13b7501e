"""Samples as training sees them: cropped, mirrored, in other light; the same way for all frames of a clip.

Everything is a function of the options, a seed and the picture's size, so a unit is the same bytes each time it is
made. Pillow does the work, as for everything else that is decoded.
"""

from dataclasses import dataclass
from math import exp, log, sqrt
from typing import Literal

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from perceiver_dist.range_checks import check_range
from pipelines.augment.rand_augment import MAX_MAGNITUDE, rand_augment

_ASPECTS = (3 / 4, 4 / 3)
_TRIES = 10

Box = tuple[float, float, float, float]
"""Left, top, right and bottom of a part of a picture, in pixels."""


@dataclass(frozen=True)
class AugmentConfig:
    """How images and clips are changed in training; evaluation changes nothing.

    Attributes:
        crop: centre: what evaluation sees. inception: a part of random place, area and shape (Szegedy et al. 2015), 3:4
            to 4:3, stretched to the input's size; the papers' choice.
        smallest_area: Of an inception crop, as a fraction of the picture; 0.08 is the usual one for photographs. Small
            pictures, of which every part matters, want 0.5 and more.
        flip: Whether half of the samples are mirrored left to right; not for letters, digits or road signs.
        colour: Brightness, contrast and saturation are each multiplied by a number from 1 - colour to 1 + colour; 0 for
            no change. The paper changes colours of clips and does not say how much.
        operations: Changes of RandAugment (see pipelines/augment/rand_augment.py) that each picture gets; 4 in the
            paper on ImageNet, 0 for none.
        magnitude: Of these changes, 0 to 10; 5 in the paper on ImageNet.
        mixup: Images of a unit are blended two by two, and so are their labels, in a proportion drawn from the beta
            distribution with this number twice; 0 for no mixing. Only for sources of images alone.
        cutmix: Images are given a rectangle of another one, of an area drawn in the same way; 0 for none. With both, a
            unit is mixed in one of the two ways.
        masks: SpecAugment (Park et al. 2019): stretches of time, and as many ranges of frequency, of a log-mel
            spectrogram that are replaced by its mean; 2 and 2 are usual, 0 for none.
        masked_time: Longest such stretch, as a fraction of the window.
        masked_bands: Widest such range, as a fraction of the bands.
    """

    crop: Literal["centre", "inception"] = "centre"
    smallest_area: float = 0.08
    flip: bool = False
    colour: float = 0.0
    operations: int = 0
    magnitude: float = 5.0
    mixup: float = 0.0
    cutmix: float = 0.0
    masks: int = 0
    masked_time: float = 0.1
    masked_bands: float = 0.3

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            UserError: A number is out of its range.
        """
        fractions = ["smallest_area", "masked_time", "masked_bands"]
        check_range(self, "augment.", fractions, above=0, at_most=1)
        check_range(self, "augment.", ["colour"], at_least=0, below=1)
        check_range(self, "augment.", ["operations", "mixup", "cutmix", "masks"], at_least=0)
        check_range(self, "augment.", ["magnitude"], at_least=0, at_most=MAX_MAGNITUDE)


NO_AUGMENT = AugmentConfig()


@dataclass(frozen=True)
class ImageTransform:
    """How one sample's pictures are cropped and changed.

    Attributes:
        augment: What may be changed.
        seed: Decides how.
    """

    augment: AugmentConfig = NO_AUGMENT
    seed: int = 0

    @property
    def smallest_side(self) -> float:
        """Of what is looked at, as a fraction of the picture's side: for decoders that can decode small."""
        smallest = sqrt(self.augment.smallest_area * _ASPECTS[0])
        return smallest if self.augment.crop == "inception" else 1.0

    def box(self, width: int, height: int, aspect: float) -> Box:
        """Return the part of a picture that is looked at.

        Args:
            width: The picture's, in pixels.
            height: The picture's, in pixels.
            aspect: Width by height of what the part is resized to; a crop of the centre has it.
        """
        if self.augment.crop == "inception":
            random = np.random.default_rng([self.seed, 0])
            for _ in range(_TRIES):
                area = width * height * random.uniform(self.augment.smallest_area, 1)
                shape = exp(random.uniform(log(_ASPECTS[0]), log(_ASPECTS[1])))
                wide, high = sqrt(area * shape), sqrt(area / shape)
                if wide <= width and high <= height:
                    left, top = random.uniform(0, width - wide), random.uniform(0, height - high)
                    return left, top, left + wide, top + high
        wide, high = min(width, height * aspect), min(height, width / aspect)
        left, top = (width - wide) / 2, (height - high) / 2
        return left, top, left + wide, top + high

    def changed(self, picture: Image.Image) -> Image.Image:
        """Mirror a picture, change its colours, and apply RandAugment, as the seed says.

        Args:
            picture: Grey or RGB.
        """
        if not (self.augment.flip or self.augment.colour or self.augment.operations):
            return picture
        random = np.random.default_rng([self.seed, 1])
        mirrored, *factors = random.uniform(size=4)
        if self.augment.flip and mirrored < 0.5:
            picture = ImageOps.mirror(picture)
        if self.augment.colour:
            kinds = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
            for kind, factor in zip(kinds, factors, strict=True):
                picture = kind(picture).enhance(1 + self.augment.colour * (2 * factor - 1))
        return rand_augment(picture, self.augment.operations, self.augment.magnitude, random)


NO_TRANSFORM = ImageTransform()
