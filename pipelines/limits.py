"""How much a single sample may ask for before it is refused."""

from dataclasses import dataclass, fields

from perceiver_dist.range_checks import check_range


@dataclass(frozen=True)
class Limits:
    """What one sample may ask for. A sample beyond a limit is bad: it is left out and recorded, as damaged ones are.

    They guard against files that claim absurd sizes, so the defaults are far above what is usual. They are compared
    with what index and headers say, before memory is taken.

    Attributes:
        field_bytes: Bytes of one field. 512 MiB: a field is held in memory as a whole while it is decoded.
        image_pixels: Pixels of an image or a frame. 100 million is above the largest cameras and takes 300 MB in RGB.
        media_seconds: Length of a sound or a clip in seconds; 6 hours, above any film.
        video_frames: Frames of a clip by its header; 1 million is 6 hours at 46 a second.
        decode_seconds: Seconds that decoding a sample may take. 30: a window of a usual clip takes tenths of a
            second, and a decoder that hangs would stop training for ever.
    """

    field_bytes: int = 512 * 1024**2
    image_pixels: int = 100_000_000
    media_seconds: float = 6 * 3600.0
    video_frames: int = 1_000_000
    decode_seconds: float = 30.0

    def __post_init__(self) -> None:
        """Check the numbers.

        Raises:
            UserError: A limit is not above 0.
        """
        check_range(self, "data.limits.", [field.name for field in fields(self)], above=0)


DEFAULT_LIMITS = Limits()
