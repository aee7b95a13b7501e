"""RandAugment (Cubuk et al. 2020, arXiv 1909.13719): a few of fourteen changes of a picture, all of one magnitude.

The changes and their ranges are AutoAugment's (arXiv 1805.09501, table 6), as in that paper: 30 degrees, a shear of
0.3, enhancement by 0.1 to 1.9, a move by 45 % of the side (150 of 331 pixels), and so on; the magnitude is the fraction
of the range that is used. What is uncovered becomes grey. Pillow does the work.
"""

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

MAX_MAGNITUDE = 10
_GREY = 128

Change = Callable[[Image.Image, float], Image.Image]
"""Of a picture, with a strength from -1 to 1; changes without a direction take its absolute value."""


def rand_augment(
    picture: Image.Image, operations: int, magnitude: float, random: np.random.Generator
) -> Image.Image:
    """Apply some of the changes one after another.

    Args:
        picture: Grey or RGB.
        operations: How many, each drawn from all; one may come twice.
        magnitude: 0 to 10.
        random: Decides which, and in which direction.
    """
    for _ in range(operations):
        change = CHANGES[list(CHANGES)[random.integers(len(CHANGES))]]
        picture = change(picture, random.choice((-1, 1)) * magnitude / MAX_MAGNITUDE)
    return picture


def _moved(picture: Image.Image, matrix: tuple[float, float, float, float, float, float]) -> Image.Image:
    fill = _GREY if picture.mode == "L" else (_GREY,) * 3
    return picture.transform(
        picture.size, Image.Transform.AFFINE, matrix, Image.Resampling.BILINEAR, fillcolor=fill
    )


def _rotated(picture: Image.Image, strength: float) -> Image.Image:
    fill = _GREY if picture.mode == "L" else (_GREY,) * 3
    return picture.rotate(30 * strength, Image.Resampling.BILINEAR, fillcolor=fill)


def _enhanced(kind: Callable[[Image.Image], ImageEnhance._Enhance]) -> Change:
    return lambda picture, strength: kind(picture).enhance(1 + 0.9 * strength)


CHANGES: dict[str, Change] = {
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
    "shear_x": lambda picture, strength: _moved(picture, (1, 0.3 * strength, 0, 0, 1, 0)),
    "shear_y": lambda picture, strength: _moved(picture, (1, 0, 0, 0.3 * strength, 1, 0)),
    "translate_x": lambda picture, strength: _moved(
        picture, (1, 0, 0.45 * strength * picture.width, 0, 1, 0)
    ),
    "translate_y": lambda picture, strength: _moved(
        picture, (1, 0, 0, 0, 1, 0.45 * strength * picture.height)
    ),
}
