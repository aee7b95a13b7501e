"""Upper bounds on what a single sample may claim, checked before memory is allocated for it."""

from dataclasses import dataclass, fields

from perceiver_dist.range_checks import check_range


@dataclass(frozen=True)
class Limits:
    """Upper bounds on one sample. A sample that exceeds one is bad: it is not used but quarantined, like a damaged one.

    They protect against files that claim absurd sizes, so the defaults are far above anything usual. Sizes are
    compared with the index and the file's headers, before memory is allocated.

    Attributes:
        field_bytes: Max size of one field in bytes. Default 512 MiB: a field is held in memory as a whole while it is
            decoded.
        image_pixels: Max pixels of an image or a video frame. The default, 100 million, is above the largest cameras
            and takes 300 MB in RGB.
        media_seconds: Max duration of an audio or video file in seconds. Default 6 hours, longer than any film.
        video_frames: Max frames of a video according to its header. The default, 1 million, is 6 hours at 46 frames a
            second.
        decode_seconds: Max seconds to decode one sample. Default 30: a window of a usual clip takes tenths of a second,
            and a decoder that hangs would stop the training for good.
    """

    field_bytes: int = 512 * 1024**2
    image_pixels: int = 100_000_000
    media_seconds: float = 6 * 3600.0
    video_frames: int = 1_000_000
    decode_seconds: float = 30.0

    def __post_init__(self) -> None:
        """Check the ranges.

        Raises:
            UserError: A limit is not above 0.
        """
        check_range(self, "data.limits.", [field.name for field in fields(self)], above=0)


DEFAULT_LIMITS = Limits()
