"""RandAugment (Cubuk et al. 2020, arXiv 1909.13719): a few of fourteen operations on a picture, of one magnitude.

The operations and their ranges are AutoAugment's (arXiv 1805.09501, table 6), as in that paper: rotation by 30 degrees,
a shear of 0.3, enhancement by 0.1 to 1.9, translation by 45 % of the side (150 of 331 pixels), and so on. The magnitude
divided by 10 is the fraction of the range that is used. Uncovered pixels become grey. Pillow does the work.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

MAX_MAGNITUDE = 10
"""The papers' scale: 10 uses the full range of an operation."""

_GREY = 128
"""Value of uncovered pixels, the middle of 0 to 255, as in AutoAugment."""

Operation = Callable[[Image.Image, float], Image.Image]
"""Takes a picture and a strength from -1 to 1. Operations without a direction use its absolute value."""


def rand_augment(
    picture: Image.Image, operations: int, magnitude: float, random: np.random.Generator
) -> Image.Image:
    """Return a picture after randomly drawn operations, applied one after another.

    Args:
        picture: Grey or RGB.
        operations: Number of operations, drawn with replacement.
        magnitude: Strength of the operations, 0 to 10.
        random: Draws the operations and their directions.
    """
    for _ in range(operations):
        operation = OPERATIONS[list(OPERATIONS)[random.integers(len(OPERATIONS))]]
        picture = operation(picture, random.choice((-1, 1)) * magnitude / MAX_MAGNITUDE)
    return picture


def _affine(picture: Image.Image, matrix: tuple[float, float, float, float, float, float]) -> Image.Image:
    fill = _GREY if picture.mode == "L" else (_GREY,) * 3
    return picture.transform(
        picture.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=fill
    )


def _rotated(picture: Image.Image, strength: float) -> Image.Image:
    fill = _GREY if picture.mode == "L" else (_GREY,) * 3
    return picture.rotate(30 * strength, Image.Resampling.BILINEAR, fillcolor=fill)


def _enhanced(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Operation:
    return lambda picture, strength: kind(picture).enhance(1 + 0.9 * strength)


OPERATIONS: dict[str, Operation] = {
    "identity": lambda picture, _: picture,
    "autocontrast": lambda picture, _: ImageOps.autocontrast(picture),
    "equalize": lambda picture, _: ImageOps.equalize(picture),
    "rotate": _rotated,
    "posterize": lambda picture, strength: ImageOps.posterize(picture, 8 - round(4 * abs(strength))),
    "solarize": lambda picture, strength: ImageOps.solarize(picture, 256 - round(256 * abs(strength))),
    "color": _enhanced(ImageEnhance.Color),
    "contrast": _enhanced(ImageEnhance.Contrast),
    "brightness": _enhanced(ImageEnhance.Brightness),
    "sharpness": _enhanced(ImageEnhance.Sharpness),
    "shear_x": lambda picture, strength: _affine(picture, (1, 0.3 * strength, 0, 0, 1, 0)),
    "shear_y": lambda picture, strength: _affine(picture, (1, 0, 0, 0.3 * strength, 1, 0)),
    "translate_x": lambda picture, strength: _affine(
        picture, (1, 0, 0.45 * strength * picture.width, 0, 1, 0)
    ),
    "translate_y": lambda picture, strength: _affine(
        picture, (1, 0, 0, 0, 1, 0.45 * strength * picture.height)
    ),
}
"""By name. The order is part of the random choices: changing it changes what a seed means."""
