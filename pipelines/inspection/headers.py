"""Sizes, rates and lengths from the headers of media files, without decoding images, audio or video."""

from av.audio.stream import AudioStream

from pipelines.decode.container import audio_track, extent, opened, video_track
from pipelines.decode.image import image_size
from pipelines.decode.points import read_points
from pipelines.errors import SampleError
from pipelines.fields import FIELD_MODALITY
from pipelines.limits import DEFAULT_LIMITS, Limits

Measures = dict[str, float]
"""Value by the name of what is measured, which includes the unit if there is one."""


def measure(field: str, data: bytes, limits: Limits = DEFAULT_LIMITS) -> Measures:
    """Return what the header of a media file states.

    Args:
        field: Name of the field, which gives the file format.
        data: The whole file.
        limits: Bounds on what it may claim.

    Returns:
        Of an image, width and height (pixels, upright). Of audio, its length, sample rate and channels. Of a video,
        width and height (as stored), length and frame rate, and the sample rate of its audio track if it has one. Of a
        mesh or cloud, which has to be read for it, the numbers of vertices and triangles.

    Raises:
        SampleError: The header is unreadable, or claims more than the limits.
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
    with opened(data, "audio", limits) as media:
        track = audio_track(media, limits)
        if track is None:
            raise SampleError("audio has no audio track")
        first, end = extent(media, track)
        return {"seconds": end - first, **_rate(track), "channels": track.codec_context.channels}


def _measure_clip(data: bytes, limits: Limits) -> Measures:
    with opened(data, "video", limits) as media:
        track = video_track(media, limits)
        if track is None:
            raise SampleError("video has no video track")
        sound = audio_track(media, limits)
        first, end = extent(media, track)
        size = {"width": track.codec_context.width, "height": track.codec_context.height}
        rate = {"frames per second": float(track.average_rate)} if track.average_rate else {}
        return {**size, "seconds": end - first, **rate, **(_rate(sound) if sound else {})}


def _rate(track: AudioStream) -> Measures:
    return {"sound samples per second": track.codec_context.sample_rate}
