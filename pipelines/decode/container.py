"""Media files held in memory: opening them, choosing tracks, and reading one track from a point in time on.

Only the demuxers that FIELD_MODALITY needs are allowed, so that bytes cannot pose as a playlist that opens other
files. FFmpeg decodes in one thread: a decoding task has one core. Times are seconds on the file's own clock,
which need not begin at 0.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Literal, TypeVar

import av
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from pipelines.errors import SampleError
from pipelines.limits import DEFAULT_LIMITS, Limits

Track = VideoStream | AudioStream
AnyTrack = TypeVar("AnyTrack", VideoStream, AudioStream)

DEMUXERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flac,wav,mp3,ogg"

MISSING = 0.25
"""Seconds that may be missing at a track's end: headers round, and encoders state their padding or do not."""


LOWEST_RATE, HIGHEST_RATE = 1_000, 768_000
"""Samples a second of any sound in use; a rate of 1 would be blown up by resampling."""

MAX_CHANNELS = 64
"""Channels of any sound in use."""

MAX_SAMPLES = 1 << 20
"""Samples of one frame of sound; a codec's frames have some thousands, FLAC's at most 65,535."""


@contextmanager
def opened(data: bytes, kind: str, limits: Limits = DEFAULT_LIMITS) -> Iterator[InputContainer]:
    """Open a media file; whatever FFmpeg says against it, now or while it is read, becomes a SampleError.

    Args:
        data: The whole file.
        kind: What to call it in the error: audio or video.
        limits: What FFmpeg is told not to go beyond, while it looks for tracks as well.

    Yields:
        The container, closed at the end.

    Raises:
        SampleError: There are no bytes, or FFmpeg cannot read them.
    """
    if not data:
        raise SampleError(f"{kind} is empty (0 bytes)")
    options = {"format_whitelist": DEMUXERS, **_decoder_options(limits)}
    try:
        with av.open(BytesIO(data), mode="r", metadata_errors="replace", options=options) as container:
            yield container
    except (av.error.FFmpegError, ValueError) as error:  # ValueError: the sound's layout changes midway.
        reason = getattr(error, "strerror", None) or str(error)
        raise SampleError(f"{kind} cannot be decoded: {' '.join(reason.split())}") from error


def video_track(container: InputContainer, limits: Limits = DEFAULT_LIMITS) -> VideoStream | None:
    """The track with pictures, or None.

    Args:
        container: The file.
        limits: How long and how large it may be.

    Raises:
        SampleError: There is one, of a codec that FFmpeg does not know or beyond the limits.
    """
    return _best_track(container, "video", VideoStream, limits)


def audio_track(container: InputContainer, limits: Limits = DEFAULT_LIMITS) -> AudioStream | None:
    """The track with sound, or None.

    Args:
        container: The file.
        limits: How long it may be.

    Raises:
        SampleError: There is one, of a codec that FFmpeg does not know, beyond the limits, or of an absurd rate.
    """
    return _best_track(container, "audio", AudioStream, limits)


def _best_track(
    container: InputContainer, kind: Literal["video", "audio"], expected: type[AnyTrack], limits: Limits
) -> AnyTrack | None:
    track = container.streams.best(kind)
    if not isinstance(track, expected):
        return None
    _prepare_decoder(track, limits)
    _check_claims(container, track, limits)
    return track


def _prepare_decoder(track: Track, limits: Limits) -> None:
    # PyAV leaves the context None, against its type, where this build of FFmpeg lacks the codec.
    if getattr(track, "codec_context", None) is None:
        raise SampleError(f"{track.type} track {track.index} is of a codec that cannot be decoded here")
    track.codec_context.thread_count = 1
    track.codec_context.options = _decoder_options(limits)


def _decoder_options(limits: Limits) -> dict[str, str]:
    # FFmpeg compares them before it takes memory for a frame, whose size may be another than the header's.
    return {"max_pixels": str(limits.image_pixels), "max_samples": str(MAX_SAMPLES)}


def _check_claims(container: InputContainer, track: Track, limits: Limits) -> None:
    """Compare what the headers say with what is sensible.

    Raises:
        SampleError: It is more than the limits, or no sound can be so.
    """
    seconds = max(_stated_seconds(track), (container.duration or 0) / av.time_base)
    if seconds > limits.media_seconds:
        raise SampleError(
            f"{track.type} track {track.index} lasts {seconds:.0f} s by its header, more than "
            f"data.limits.media_seconds {limits.media_seconds:g}"
        )
    if isinstance(track, VideoStream):
        if track.frames > limits.video_frames:
            raise SampleError(
                f"video track {track.index} has {track.frames} frames by its header, more than "
                f"data.limits.video_frames {limits.video_frames}"
            )
        width, height = track.codec_context.width, track.codec_context.height
        if width * height > limits.image_pixels:
            raise SampleError(
                f"video track {track.index} has {width} x {height} pixels by its header, more than "
                f"data.limits.image_pixels {limits.image_pixels}"
            )
        return
    rate, channels = track.codec_context.sample_rate, track.codec_context.channels
    if not LOWEST_RATE <= rate <= HIGHEST_RATE or not 1 <= channels <= MAX_CHANNELS:
        raise SampleError(
            f"audio track {track.index} has {rate} samples a second and {channels} channels by its header, expected "
            f"{LOWEST_RATE} to {HIGHEST_RATE} and 1 to {MAX_CHANNELS}"
        )


def _stated_seconds(track: Track) -> float:
    end = _stated_end(track)
    return 0.0 if end is None else end - (track.start_time or 0) * float(track.time_base or 0)


def window_start(container: InputContainer, track: Track, window: float, position: float) -> float:
    """Where a window begins that is to lie inside a track.

    Args:
        container: The file.
        track: The track.
        window: Length of the window in seconds.
        position: 0 for the first possible start, 0.5 for the one in the middle, 1 for the last.

    Returns:
        Seconds; the track's beginning where it is shorter than the window.
    """
    first, end = extent(container, track)
    return first + position * max(0.0, end - first - window)


def extent(container: InputContainer, track: Track) -> tuple[float, float]:
    """Return first and last instant of a track: as track or container state, or else found by reading it.

    Args:
        container: The file.
        track: The track.
    """
    tick = float(track.time_base or 0)
    first = (track.start_time or 0) * tick
    stated = _stated_end(track)
    if stated is not None:
        return first, stated
    if container.duration:
        return first, container.duration / av.time_base
    # Recorders that write as they go, browsers among them, state no duration.
    ends = [
        packet.pts + (packet.duration or 0) for packet in container.demux(track) if packet.pts is not None
    ]
    return first, max(ends, default=0) * tick


def _stated_end(track: Track) -> float | None:
    """Last instant as the file states it for this very track."""
    if track.duration and track.time_base:
        return float(((track.start_time or 0) + track.duration) * track.time_base)
    tag = re.fullmatch(
        r"(\d+):(\d+):(\d+\.?\d*)", track.metadata.get("DURATION", "")
    )  # Matroska has no other.
    return None if tag is None else int(tag[1]) * 3600 + int(tag[2]) * 60 + float(tag[3])


def require_reached(track: Track, wanted: float, reached: float) -> None:
    """Tell a track that is shorter than the window from one that was cut off.

    Args:
        track: The track, read to its end.
        wanted: Time up to which it was wanted.
        reached: Time at which it ended.

    Raises:
        SampleError: By its own header the track lasts longer.
    """
    stated = _stated_end(track)
    if stated is not None and min(wanted, stated) > reached + MISSING:
        raise SampleError(
            f"{track.type} track {track.index} is truncated: "
            f"ends at {reached:.2f} s, its header states {stated:.2f} s"
        )


def beginning(container: InputContainer) -> float:
    """Time of the container's first instant.

    Args:
        container: The file.
    """
    return (container.start_time or 0) / av.time_base


def decoded_from(
    container: InputContainer, track: Track, time: float
) -> Iterator[tuple[float, AudioFrame | VideoFrame]]:
    """Seek to a keyframe at or before a time, by the container's index, and decode one track from there.

    Args:
        container: The file; it may stand anywhere.
        track: The track to decode.
        time: Where to seek to; before the beginning means the beginning.

    Yields:
        The time and the frame, for every frame that has a time, to the end of the track.

    Raises:
        SampleError: A packet is cut off.
    """
    container.seek(max(int(time * av.time_base), container.start_time or 0))
    for packet in container.demux(track):
        if packet.is_corrupt:
            raise SampleError(
                f"{track.type} track {track.index} is truncated or damaged at byte {packet.pos}"
            )
        for frame in packet.decode():
            if isinstance(frame, AudioFrame | VideoFrame) and frame.time is not None:
                yield frame.time, frame
