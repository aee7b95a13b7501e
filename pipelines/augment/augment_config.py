"""Options of data augmentation, of all modalities."""

from dataclasses import dataclass
from typing import Literal

from perceiver_dist.range_checks import check_range
from pipelines.augment.rand_augment import MAX_MAGNITUDE


@dataclass(frozen=True)
class AugmentConfig:
    """Data augmentation in training. Evaluation is never augmented.

    Attributes:
        crop: centre: the central crop, as in evaluation (the default). inception: a crop of random position, area and
            aspect ratio, 3:4 to 4:3, resized to the input's size (Szegedy et al. 2015); the papers' choice.
        smallest_area: Min area of an inception crop, as a fraction of the picture's. The default, 0.08, is usual for
            photographs. Small pictures, in which every part matters, need 0.5 or more.
        flip: Whether half of the samples, drawn at random, are mirrored left to right: pictures, and clouds along their
            first axis. Not for letters, digits or road signs; so the default is false.
        colour: Colour jitter: brightness, contrast and saturation are each multiplied by a random factor from
            1 - colour to 1 + colour. Default 0: none. The paper jitters the colours of videos and does not say how
            much.
        operations: Number of RandAugment operations (see pipelines/augment/rand_augment.py) on each picture. Default 0:
            none; the paper uses 4 on ImageNet.
        magnitude: Strength of the RandAugment operations, 0 to 10. Default 5, the paper's on ImageNet.
        mixup: MixUp (Zhang et al. 2018): each image of a unit and its label are blended with another one, in a
            proportion drawn from Beta(mixup, mixup). Default 0: none. Only for sources with images alone.
        cutmix: CutMix (Yun et al. 2019): a rectangle of each image is replaced by that of another one, and the label in
            proportion to its area, which is drawn from Beta(cutmix, cutmix). Default 0: none. Only for sources with
            images alone. If mixup is set too, each unit gets one of the two.
        masks: SpecAugment (Park et al. 2019): number of time masks, and of frequency masks, on each log-mel
            spectrogram. Masked values become the spectrogram's mean. Default 0: none; 2 of each are usual. The paper
            uses SpecAugment on AudioSet and does not say how much.
        masked_time: Max width of a time mask, as a fraction of the window.
        masked_bands: Max width of a frequency mask, as a fraction of the bands.
        speed: Sounds are played faster or slower, which also shifts their pitch, by a random factor from 1 - speed to
            1 + speed (Ko et al. 2015). Default 0: none; 0.1 is usual for speech. Not beside the frames of a video.
        gain: Max change of a sound's level in dB, drawn evenly between -gain and +gain. Default 0: none. Only for raw
            sound or where the level means nothing.
        stretch: Clouds are stretched along each axis by a random factor of its own, from 1 - stretch to 1 + stretch.
            Default 0: none; PointNet++'s code uses up to 1.25 along all axes alike. The result is not scaled again.
        token_dropout: Probability that the content of a token is hidden in training: it becomes the mean content of its
            modality in the sample, like a mask. A point of a cloud becomes a copy of another one. Default 0: none; for
            small data, of any modality.
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
    speed: float = 0.0
    gain: float = 0.0
    stretch: float = 0.0
    token_dropout: float = 0.0

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            UserError: A number is out of its range.
        """
        fractions = ["smallest_area", "masked_time", "masked_bands"]
        check_range(self, "augment.", fractions, above=0, at_most=1)
        check_range(self, "augment.", ["colour", "speed", "stretch", "token_dropout"], at_least=0, below=1)
        check_range(self, "augment.", ["operations", "mixup", "cutmix", "masks", "gain"], at_least=0)
        check_range(self, "augment.", ["magnitude"], at_least=0, at_most=MAX_MAGNITUDE)


NO_AUGMENT = AugmentConfig()
