"""Media as a person wants to see them: whole pictures, some frames, some seconds of sound, a cloud of many points."""

from collections.abc import Mapping

import av
import numpy as np

from perceiver_dist.modalities import AudioInput, ImageInput, ModalityInput, PointCloudInput, VideoInput
from pipelines.augment.randomness import SampleRandomness
from pipelines.decode import FIELD_MODALITY, decode_audio, decode_image, decode_points, decode_video
from pipelines.decode.container import opened, video_track
from pipelines.decode.sample import Arrays
from pipelines.inspection.headers import Measures, measure
from pipelines.limits import Limits
from pipelines.shards.sample_reader import RawSample

PICTURE_SIDE, FRAME_SIDE = 320, 128
"""Pixels of the longer side of an image, and of a frame; smaller ones stay as they are."""
FRAMES = 6
CLIP_SECONDS, SOUND_SECONDS = 4.0, 5.0
"""Length of the window in the middle of longer clips and sounds."""
HIGHEST_RATE = 16_000
POINTS = 3000


def preview_medium(
    sample: RawSample,
    inputs: Mapping[str, ModalityInput],  # noqa: ARG001 # a decoder's arguments
    randomness: SampleRandomness,
    limits: Limits,
) -> Arrays:
    """Decode one medium in its own shape, no larger than it is to be seen; a `Decode`.

    Args:
        sample: A sample with one field, which can be decoded.
        inputs: Not used; sizes follow from the medium.
        randomness: Where windows lie, and which points are drawn.
        limits: What the medium may ask for.

    Returns:
        What `measure` says, each as an array (), and the medium under its modality: image uint8 (height, width, 3);
        audio int16 (samples,) at `shown_rate`; video uint8 (frames, height, width, 3), and its sound if it has any;
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
    """Return the rate that sound is shown at.

    Args:
        native: Its own rate, samples per second.
    """
    return min(int(native), HIGHEST_RATE)


def _shrunk(width: float, height: float, side: int) -> tuple[int, int]:
    scale = min(1.0, side / max(width, height))
    return max(1, round(width * scale)), max(1, round(height * scale))


def _sound(measures: Measures, most_seconds: float) -> AudioInput:
    rate = shown_rate(measures["sound samples per second"])
    return AudioInput(
        sample_rate=rate, samples=max(1, round(rate * min(measures["seconds"], most_seconds))), segment=1
    )


def _track(measures: Measures) -> AudioInput | None:
    return _sound(measures, CLIP_SECONDS) if "sound samples per second" in measures else None


def _clip(data: bytes, measures: Measures, limits: Limits) -> VideoInput:
    width, height = measures["width"], measures["height"]
    if _lies_on_its_side(data, limits):
        width, height = height, width
    width, height = _shrunk(width, height, FRAME_SIDE)
    # A clip of one picture may have no length.
    rate = FRAMES / (min(measures["seconds"], CLIP_SECONDS) or 1.0)
    return VideoInput(frames=FRAMES, frames_per_second=rate, height=height, width=width, patch=(1, 1, 1))


def _lies_on_its_side(data: bytes, limits: Limits) -> bool:
    """Whether a clip is to be turned by a quarter to be upright, which only its frames say."""
    with opened(data, "video", limits) as container:
        track = video_track(container, limits)
        frame = next(container.decode(track), None) if track else None
        return isinstance(frame, av.VideoFrame) and round(frame.rotation / 90) % 2 == 1
