"""What the header of a medium says: sizes, rates, lengths. Pictures, sounds and clips are not decoded for it."""

from av.audio.stream import AudioStream

from pipelines.decode import FIELD_MODALITY
from pipelines.decode.container import audio_track, extent, opened, video_track
from pipelines.decode.image import image_size
from pipelines.decode.points import read_points
from pipelines.errors import SampleError
from pipelines.limits import DEFAULT_LIMITS, Limits

Measures = dict[str, float]
"""What is measured, with its unit where it has one, and how much it is."""


def measure(field: str, data: bytes, limits: Limits = DEFAULT_LIMITS) -> Measures:
    """Return what the header of a medium says.

    Args:
        field: Name of the field, which says what it is.
        data: The whole file.
        limits: What it may claim.

    Returns:
        Of an image width and height (pixels, upright); of a sound its length, rate and channels; of a clip width and
        height (as they are stored), length and rate, and the rate of its sound if it has any; of a mesh or cloud the
        numbers of vertices and triangles.

    Raises:
        SampleError: The header cannot be read, or claims more than the limits.
    """
    match FIELD_MODALITY[field]:
        case "image":
            width, height = image_size(data, limits)
            return {"width": width, "height": height}
        case "audio":
            return _measure_sound(data, limits)
        case "video":
            return _measure_clip(data, limits)
        case _:
            mesh = read_points(data, field)
            return {"vertices": len(mesh.vertices), "triangles": len(mesh.triangles)}


def _measure_sound(data: bytes, limits: Limits) -> Measures:
    with opened(data, "audio", limits) as container:
        track = audio_track(container, limits)
        if track is None:
            raise SampleError("audio has no sound track")
        first, end = extent(container, track)
        return {"seconds": end - first, **_rate(track), "channels": track.codec_context.channels}


def _measure_clip(data: bytes, limits: Limits) -> Measures:
    with opened(data, "video", limits) as container:
        track = video_track(container, limits)
        if track is None:
            raise SampleError("video has no picture track")
        sound = audio_track(container, limits)
        first, end = extent(container, track)
        size = {"width": track.codec_context.width, "height": track.codec_context.height}
        rate = {"frames per second": float(track.average_rate)} if track.average_rate else {}
        return {**size, "seconds": end - first, **rate, **(_rate(sound) if sound else {})}


def _rate(track: AudioStream) -> Measures:
    return {"sound samples per second": track.codec_context.sample_rate}
