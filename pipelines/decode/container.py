"""Media files in memory (PyAV): open them, choose a track, and decode it from a point in time.

Only the demuxers that FIELD_MODALITY needs are allowed, so bytes cannot pose as a playlist that opens other files.
Headers state how long a track is; where they do not (media_headers.py), it is read to its end to find out.
FFmpeg decodes in one thread, because a decoding task has one core. Times are in seconds on the file's own clock,
which need not begin at 0.
"""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, TypeVar

import av
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.packet import Packet
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from pipelines.decode.media_headers import length_is_estimated, with_true_wav_size
from pipelines.errors import SampleError
from pipelines.limits import DEFAULT_LIMITS, Limits

Track = VideoStream | AudioStream
AnyTrack = TypeVar("AnyTrack", VideoStream, AudioStream)

DEMUXERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,flac,wav,mp3,ogg,aac,mpeg,mpegts"

_REASONS: dict[type[Exception], str] = {
    av.error.ArgumentError: "it is of a format that is not read here, or its header is damaged",
    av.error.EOFError: "it ends before its first packet is complete",
    av.error.PermissionError: "a point in time is not found in it, its index or timestamps are damaged",
}
"""What FFmpeg's errors of the operating system mean for a file in memory: no allowed demuxer knows it, nothing is left
to find out what it holds, a seek failed."""

_SEARCHED = ("mpeg", "mpegts")
"""Demuxers without an index, which search for the decoding time of a packet."""
_SEARCH_BACK = 1.0
"""Seconds by which they search earlier: a frame's decoding time is before the time at which it is shown."""

_MAX_DAMAGED = 0.1
"""Share of the packets that may be damaged: losses in transmission are rarer, and a file of which more is damaged is no
longer what its label says. What is lost is silence, or the frame before it."""

MISSING = 0.25
"""Seconds that may be missing at the end of a track: headers round, and not all encoders include their padding in the
stated duration."""

LOWEST_RATE, HIGHEST_RATE = 1_000, 768_000
"""Range of sample rates in use, in Hz, up to those of studio equipment. Resampling audio that claims a rate of 1 Hz
would multiply its size by the target rate."""

MAX_CHANNELS = 64
"""Max channels; a channel layout of FFmpeg is a mask of 64 bits."""

MAX_SAMPLES = 1 << 20
"""Max samples of one audio frame. Codecs have a few thousand, and FLAC at most 65,535; 16 times that is still small."""


@dataclass(frozen=True)
class MediaFile:
    """An opened media file.

    Attributes:
        container: The file in PyAV.
        length_is_estimated: Whether the lengths of its tracks are not stated in the file.
        extents: Track index -> first and last instant, of the tracks for which `extent` has been asked: it may have to
            read the whole file.
    """

    container: InputContainer
    length_is_estimated: bool
    extents: dict[int, tuple[float, float]] = field(default_factory=dict)


@contextmanager
def opened(data: bytes, kind: str, limits: Limits = DEFAULT_LIMITS) -> Iterator[MediaFile]:
    """Open a media file; every FFmpeg error, now or while the file is read, becomes a SampleError.

    Args:
        data: The whole file.
        kind: Name of it in the error: audio or video.
        limits: Bounds that FFmpeg enforces, also while it looks for tracks.

    Yields:
        The file, which is closed at the end.

    Raises:
        SampleError: There are no bytes, or FFmpeg cannot read them.
    """
    if not data:
        raise SampleError(f"{kind} is empty (0 bytes)")
    options = {"format_whitelist": DEMUXERS, **_decoder_options(limits)}
    try:
        file = BytesIO(with_true_wav_size(data))
        with av.open(file, mode="r", metadata_errors="replace", options=options) as container:
            yield MediaFile(container, length_is_estimated(container, data))
    except (av.error.FFmpegError, ValueError) as error:  # ValueError: the channel layout changes midway.
        reason = _REASONS.get(type(error)) or getattr(error, "strerror", None) or str(error)
        raise SampleError(f"{kind} cannot be decoded: {' '.join(reason.split())}") from error


def video_track(media: MediaFile, limits: Limits = DEFAULT_LIMITS) -> VideoStream | None:
    """Return the video track, or None if there is none. A cover picture is none.

    Args:
        media: The file.
        limits: Bounds on its duration and size.

    Raises:
        SampleError: Its codec is unknown to FFmpeg, or it exceeds the limits.
    """
    tracks = [track for track in media.container.streams.video if not _is_cover(track)]
    best = media.container.streams.best("video")
    track = best if best in tracks else next(iter(tracks), None)
    return _checked(media, track, limits) if isinstance(track, VideoStream) else None


def has_cover(media: MediaFile) -> bool:
    """Return whether the file has a cover picture, as sound files have, which FFmpeg presents as a video track.

    Args:
        media: The file.
    """
    return any(map(_is_cover, media.container.streams.video))


def _is_cover(track: VideoStream) -> bool:
    return Disposition.attached_pic in track.disposition


def audio_track(media: MediaFile, limits: Limits = DEFAULT_LIMITS) -> AudioStream | None:
    """Return the audio track, or None if there is none.

    Args:
        media: The file.
        limits: Bounds on its duration.

    Raises:
        SampleError: Its codec is unknown to FFmpeg, it exceeds the limits, or its sample rate is implausible.
    """
    track = media.container.streams.best("audio")
    return _checked(media, track, limits) if isinstance(track, AudioStream) else None


def _checked(media: MediaFile, track: AnyTrack, limits: Limits) -> AnyTrack:
    _prepare_decoder(track, limits)
    _check_claims(media, track, limits)
    return track


def _prepare_decoder(track: Track, limits: Limits) -> None:
    # PyAV leaves the context None, contrary to its type annotation, if this build of FFmpeg lacks the codec.
    if getattr(track, "codec_context", None) is None:
        raise SampleError(f"{track.type} track {track.index} is of a codec that cannot be decoded here")
    track.codec_context.thread_count = 1
    track.codec_context.options = _decoder_options(limits)


def _decoder_options(limits: Limits) -> dict[str, str]:
    # FFmpeg checks these before it allocates a frame, whose size may differ from the one in the header.
    return {"max_pixels": str(limits.image_pixels), "max_samples": str(MAX_SAMPLES)}


def _check_claims(media: MediaFile, track: Track, limits: Limits) -> None:
    """Compare what the headers claim with the limits.

    Raises:
        SampleError: They claim more than the limits, or an implausible sample rate or number of channels.
    """
    first, end = extent(media, track) if media.length_is_estimated else (0, _stated_seconds(media, track))
    seconds = end - first
    if seconds > limits.media_seconds:
        raise SampleError(
            f"{track.type} track {track.index} lasts {seconds:.0f} s by its header, more than "
            f"data.limits.media_seconds {limits.media_seconds:g}"
        )
    if isinstance(track, VideoStream):
        if track.frames > limits.video_frames and not media.length_is_estimated:
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


def _stated_seconds(media: MediaFile, track: Track) -> float:
    end, first = _stated_end(media, track), (track.start_time or 0) * float(track.time_base or 0)
    return max(0.0 if end is None else end - first, (media.container.duration or 0) / av.time_base)


def window_start(media: MediaFile, track: Track, window: float, position: float) -> float:
    """Return the start of a window that lies inside a track.

    Args:
        media: The file.
        track: The track.
        window: Length of the window, in seconds.
        position: 0 for the first possible start, 0.5 for the middle one, 1 for the last.

    Returns:
        Seconds; the beginning of the track if it is shorter than the window.
    """
    first, end = extent(media, track)
    return first + position * max(0.0, end - first - window)


def extent(media: MediaFile, track: Track) -> tuple[float, float]:
    """Return the first and last instant of a track, as stated by track or container, or else found by reading it.

    Args:
        media: The file.
        track: The track.
    """
    if track.index not in media.extents:
        media.extents[track.index] = _found_extent(media, track)
    return media.extents[track.index]


def _found_extent(media: MediaFile, track: Track) -> tuple[float, float]:
    tick = float(track.time_base or 0)
    first = (track.start_time or 0) * tick
    stated = _stated_end(media, track)
    if stated is not None:
        return first, stated
    container = media.container
    if container.duration and not media.length_is_estimated:
        return first, container.duration / av.time_base
    # Recorders that stream their output, such as MediaRecorder in browsers, state no duration.
    container.seek(container.start_time or 0)
    ends = [
        packet.pts + (packet.duration or 0) for packet in container.demux(track) if packet.pts is not None
    ]
    return first, max(ends, default=0) * tick


def _stated_end(media: MediaFile, track: Track) -> float | None:
    """Return the last instant that the file states for this track, or None if it states none."""
    if media.length_is_estimated:
        return None
    if track.duration and track.time_base:
        return float(((track.start_time or 0) + track.duration) * track.time_base)
    tag = re.fullmatch(
        r"(\d+):(\d+):(\d+\.?\d*)", track.metadata.get("DURATION", "")
    )  # Matroska states a track's duration only in this tag.
    return None if tag is None else int(tag[1]) * 3600 + int(tag[2]) * 60 + float(tag[3])


def require_reached(media: MediaFile, track: Track, wanted: float, reached: float) -> None:
    """Raise if a track was cut off; one that is only shorter than the window is fine.

    Args:
        media: The file.
        track: The track, read to its end.
        wanted: End of the window.
        reached: Time at which decoding ended.

    Raises:
        SampleError: The header states a longer track.
    """
    stated = _stated_end(media, track)
    if stated is not None and min(wanted, stated) > reached + MISSING:
        raise SampleError(
            f"{track.type} track {track.index} is truncated: "
            f"ends at {reached:.2f} s, its header states {stated:.2f} s"
        )


def beginning(media: MediaFile) -> float:
    """Return the time at which a file begins, in seconds.

    Args:
        media: The file.
    """
    return (media.container.start_time or 0) / av.time_base


def decoded_from(
    media: MediaFile, track: Track, time: float
) -> Iterator[tuple[float, AudioFrame | VideoFrame]]:
    """Seek to a keyframe at or before a time, by the container's index, and decode one track from there.

    Args:
        media: The file, at any read position.
        track: The track to decode.
        time: Time to seek to; one before the beginning means the beginning.

    Yields:
        The time and the frame, for every frame that has a timestamp, up to the end of the track. If a few packets
        between good ones are damaged, frames are left out up to the next keyframe.

    Raises:
        SampleError: The first packet of a clip is damaged, no good keyframe follows a damaged one, so that the track
            may be truncated, or too many are damaged.
    """
    container = media.container
    slack = _SEARCH_BACK if container.format.name in _SEARCHED else 0.0
    container.seek(max(int(time * av.time_base), container.start_time or 0) - int(slack * av.time_base))
    packets, damaged = 0, 0
    at: int | None = None  # where the latest damaged packet is, until a good one follows
    for packet in container.demux(track):
        packets += packet.size > 0
        frames = _frames_of(packet)
        if frames is None:
            damaged, at = damaged + 1, packet.pos
            # A lost beginning of a sound is silence, as where files were joined; in a clip no frame comes before it.
            nothing_before = damaged == packets and isinstance(track, VideoStream)
            if nothing_before or damaged > max(1, _MAX_DAMAGED * packets):
                break
            continue
        if packet.is_keyframe and packet.size:
            at = None
        if at is not None:
            continue  # such frames are computed from the lost one
        for frame in frames:
            if isinstance(frame, AudioFrame | VideoFrame) and frame.time is not None:
                yield frame.time, frame
    if at is not None:
        raise SampleError(
            f"{track.type} track {track.index} is truncated or damaged at byte {at}: {damaged} of {packets} packets"
        )


def _frames_of(packet: "Packet[Any]") -> Sequence[Any] | None:
    """Return the frames that a packet completes; None if it is damaged."""
    if packet.is_corrupt:
        return None
    try:
        return packet.decode()
    except av.error.FFmpegError:
        return None
