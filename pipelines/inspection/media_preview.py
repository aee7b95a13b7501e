"""Decoding of media for display: whole images, a few frames, a few seconds of audio, a cloud of many points."""

from collections.abc import Mapping

import av
import numpy as np

from perceiver_dist.modalities import AudioInput, ImageInput, ModalityInput, PointCloudInput, VideoInput
from pipelines.augment.randomness import SampleRandomness
from pipelines.decode import decode_audio, decode_image, decode_points, decode_video
from pipelines.decode.container import opened, video_track
from pipelines.decode.sample import Arrays
from pipelines.fields import FIELD_MODALITY
from pipelines.inspection.headers import Measures, measure
from pipelines.limits import Limits
from pipelines.shards.sample_reader import RawSample

PICTURE_SIDE, FRAME_SIDE = 320, 128
"""Max pixels of the longer side of an image, and of a frame: what a card of the page shows at most."""
FRAMES = 6
"""Frames of a video: two rows of three on its card."""
CLIP_SECONDS, SOUND_SECONDS = 4.0, 5.0
"""Max seconds of video and audio: enough to recognize them, since a page embeds audio uncompressed."""
HIGHEST_RATE = 16_000
"""Max sample rate in Hz: speech and most events stay clear, at a third of the size of 48 kHz."""
POINTS = 3000
"""Points of a cloud: enough to show its shape in a small figure."""


def preview_medium(
    sample: RawSample,
    inputs: Mapping[str, ModalityInput],  # noqa: ARG001 # a decoder's arguments
    randomness: SampleRandomness,
    limits: Limits,
) -> Arrays:
    """Decode one medium in its own shape, no larger than it is shown; a `Decode`.

    Args:
        sample: A sample with one field, of a decodable type.
        inputs: Unused; sizes follow from the medium.
        randomness: Position of a window, and which points are drawn.
        limits: Bounds on what the medium may claim.

    Returns:
        The values of `measure`, each as an array (), and the medium under its modality: image uint8 (height, width, 3);
        audio int16 (samples,) at `shown_rate`; video uint8 (frames, height, width, 3), and its audio if it has any;
        points fp32 (points, 3).

    Raises:
        SampleError: It cannot be decoded.
    """
    [(field, data)] = sample.fields.items()
    measures = measure(field, data, limits)
    return {
        **{name: np.array(value) for name, value in measures.items()},
        **_decoded(field, data, measures, randomness, limits),
    }


def _decoded(
    field: str, data: bytes, measures: Measures, randomness: SampleRandomness, limits: Limits
) -> Arrays:
    match FIELD_MODALITY[field]:
        case "image":
            width, height = _shrunk(measures["width"], measures["height"], PICTURE_SIDE)
            return {"image": decode_image(data, ImageInput(height=height, width=width), limits)}
        case "audio":
            return {"audio": decode_audio(data, _sound(measures, SOUND_SECONDS), randomness.window, limits)}
        case "video":
            frames, sound = decode_video(
                data, _clip(data, measures, limits), _track(measures), randomness.window, limits
            )
            return {name: array for name, array in (("video", frames), ("audio", sound)) if array is not None}
        case _:
            return {"points": decode_points(data, field, PointCloudInput(points=POINTS), randomness)}


def shown_rate(native: float) -> int:
    """Return the sample rate at which audio is shown.

    Args:
        native: Its own sample rate, in Hz.
    """
    return min(int(native), HIGHEST_RATE)


def _shrunk(width: float, height: float, side: int) -> tuple[int, int]:
    scale = min(1.0, side / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _sound(measures: Measures, max_seconds: float) -> AudioInput:
    rate = shown_rate(measures["sound samples per second"])
    return AudioInput(
        sample_rate=rate, samples=max(1, round(rate * min(measures["seconds"], max_seconds))), segment=1
    )


def _track(measures: Measures) -> AudioInput | None:
    return _sound(measures, CLIP_SECONDS) if "sound samples per second" in measures else None


def _clip(data: bytes, measures: Measures, limits: Limits) -> VideoInput:
    width, height = measures["width"], measures["height"]
    if _is_sideways(data, limits):
        width, height = height, width
    width, height = _shrunk(width, height, FRAME_SIDE)
    # A video of one frame may state a length of 0.
    rate = FRAMES / (min(measures["seconds"], CLIP_SECONDS) or 1.0)
    return VideoInput(frames=FRAMES, frames_per_second=rate, height=height, width=width, patch=(1, 1, 1))


def _is_sideways(data: bytes, limits: Limits) -> bool:
    """Whether a video has to be rotated by 90 degrees to be upright. PyAV gives the rotation only with a frame."""
    with opened(data, "video", limits) as media:
        track = video_track(media, limits)
        frame = next(media.container.decode(track), None) if track else None
        return isinstance(frame, av.VideoFrame) and round(frame.rotation / 90) % 2 == 1
