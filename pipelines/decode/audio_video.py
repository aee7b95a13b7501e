"""Sounds and video clips: a window in time to arrays of fixed shape, through PyAV (FFmpeg).

A clip's frames and its sound are cut from one window, and what ties them together is the timestamps alone:

1. The window starts at a time chosen among those at which it still lies inside the track.
2. Frames: seek to a keyframe before that time, decode forward, and take for each instant start + i / rate the
   frame shown then, the last one whose timestamp is not later.
3. Sound: seek a little earlier, since codecs need some packets to settle, and lay the resampled sound at
   (timestamp - start) * rate. An encoder's priming and a track that starts late carry timestamps that say so;
   counting samples from the file's beginning would shift the sound by them.
"""

from collections.abc import Iterator
from itertools import chain

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from PIL import Image

from perceiver_dist.modalities import AudioInput, VideoInput
from pipelines.augment.image_transform import NO_TRANSFORM, ImageTransform
from pipelines.decode.container import (
    audio_track,
    beginning,
    decoded_from,
    opened,
    require_reached,
    video_track,
    window_start,
)
from pipelines.decode.image import fit_image
from pipelines.errors import SampleError
from pipelines.limits import DEFAULT_LIMITS, Limits

TIMESTAMP_SLACK = 0.001
"""Seconds by which a frame may be stamped late and still count as shown: Matroska rounds to milliseconds."""

SETTLING_TIME = 0.2
"""Seconds of sound decoded before the window: Opus asks for 0.08, AAC and MP3 for two packets."""

GAP = 0.02
"""Seconds by which a timestamp must differ from the count of samples to be believed: less is rounding."""


def decode_audio(
    data: bytes, spec: AudioInput, position: float, limits: Limits = DEFAULT_LIMITS
) -> np.ndarray:
    """Decode a window of a sound to mono at the asked rate.

    Args:
        data: A whole FLAC, WAV, MP3 or OGG (Vorbis, Opus) file.
        spec: Rate and length of the window.
        position: Where the window lies among its possible starts: 0 first, 0.5 centre, 1 last.
        limits: How long it may be.

    Returns:
        int16 (samples,), padded with silence where the sound is shorter.

    Raises:
        SampleError: The bytes are empty, truncated, of another format, hold no sound, or claim more than the limits.
    """
    with opened(data, "audio", limits) as container:
        track = audio_track(container, limits)
        if track is None:
            raise SampleError("audio has no sound track")
        start = window_start(container, track, spec.samples / spec.sample_rate, position)
        sound = _read_sound(container, track, start, spec)
    if sound is None:
        raise SampleError("audio has no sound that can be decoded")
    return sound


def decode_video(
    data: bytes,
    video: VideoInput | None,
    audio: AudioInput | None,
    position: float,
    limits: Limits = DEFAULT_LIMITS,
    transform: ImageTransform = NO_TRANSFORM,
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Decode a window of a clip: its frames, its sound, or both from the same instant on.

    Args:
        data: A whole MP4, MOV, WebM, MKV or AVI file.
        video: What frames to take; None for none.
        audio: What sound to take; None for none.
        position: Where the longer of the two windows lies among its possible starts: 0 first, 0.5 centre, 1 last.
        limits: How long and how large it may be.
        transform: Which part of the frames is taken, and what is changed; the same for all.

    Returns:
        Frames, uint8 (frames, height, width, channels), or None if not asked for; a clip shorter than the window
        repeats its last frame. Sound, int16 (samples,), or None if not asked for or if the clip has no sound
        track; silence where the track has none.

    Raises:
        SampleError: The bytes are empty, truncated, of another format, have no frames though asked for, or claim
            more than the limits.
    """
    with opened(data, "video", limits) as container:
        pictures = video_track(container, limits) if video else None
        if video and pictures is None:
            raise SampleError("video has no picture track")
        sounds = audio_track(container, limits) if audio else None
        clock = pictures or sounds
        if clock is None:
            return None, None
        window = max(
            video.frames / video.frames_per_second if video else 0.0,
            audio.samples / audio.sample_rate if audio else 0.0,
        )
        start = window_start(container, clock, window, position)
        frames = _read_frames(container, pictures, start, video, transform) if pictures and video else None
        if sounds is None or audio is None:
            return frames, None
        sound = _read_sound(container, sounds, start, audio)
        return frames, np.zeros(audio.array_shape, np.int16) if sound is None else sound


def _read_frames(
    container: InputContainer, track: VideoStream, start: float, spec: VideoInput, transform: ImageTransform
) -> np.ndarray:
    """Decode the frames shown at start + i / frames_per_second: uint8 (frames, height, width, channels).

    Raises:
        SampleError: Not one frame can be decoded.
    """
    instants = [start + i / spec.frames_per_second + TIMESTAMP_SLACK for i in range(spec.frames)]
    shown: list[np.ndarray] = []
    shrinker = VideoReformatter()
    current, reached = None, start
    for time, frame in _frames_from(container, track, start):
        due = sum(instant < time for instant in instants) - len(shown)
        if current is not None and due > 0:
            shown += [_fit_frame(current, spec, shrinker, transform)] * due
        if len(shown) == spec.frames:
            break
        current, reached = frame, time + float(frame.duration * (frame.time_base or 0))
    if current is None:
        raise SampleError("video has no frames that can be decoded")
    if len(shown) < spec.frames:
        require_reached(track, instants[-1], reached)
        shown += [_fit_frame(current, spec, shrinker, transform)] * (spec.frames - len(shown))
    return np.stack(shown)


def _frames_from(
    container: InputContainer, track: VideoStream, start: float
) -> Iterator[tuple[float, VideoFrame]]:
    """Yield times and frames in order, the first at or before `start` where there is such a one.

    Containers look keyframes up by decoding time, which is earlier than the time of showing: the keyframe found
    may be shown only after `start`. Then look further back.
    """
    step_back = 0.0
    while True:
        decoded = decoded_from(container, track, start - step_back)
        frames = ((time, frame) for time, frame in decoded if isinstance(frame, VideoFrame))
        first = next(frames, None)
        at_beginning = start - step_back <= beginning(container)
        if at_beginning or (first and first[0] <= start + TIMESTAMP_SLACK):
            break
        step_back = 2 * step_back + 0.5
    if first:
        yield first
        yield from frames


def _fit_frame(
    frame: VideoFrame, spec: VideoInput, shrinker: VideoReformatter, transform: ImageTransform
) -> np.ndarray:
    """Turn a frame upright and fit it as images are: uint8 (height, width, channels).

    FFmpeg shrinks it first, which is several times cheaper in its own colours than in RGB.
    """
    quarter_turns = round(frame.rotation / 90)
    width, height = (frame.height, frame.width) if quarter_turns % 2 else (frame.width, frame.height)
    left, top, right, bottom = transform.crop_box(width, height, spec.width / spec.height)
    scale = max(spec.height / (bottom - top), spec.width / (right - left))
    size = (round(frame.width * scale), round(frame.height * scale))
    small = shrinker.reformat(frame, *size, "rgb24", interpolation="BICUBIC", threads=1)
    upright = Image.fromarray(np.rot90(small.to_ndarray(), k=quarter_turns))
    box = transform.crop_box(*upright.size, spec.width / spec.height)
    return fit_image(upright, spec.height, spec.width, spec.channels, box, transform)


def _read_sound(
    container: InputContainer, track: AudioStream, start: float, spec: AudioInput
) -> np.ndarray | None:
    """Decode the sound from `start` on: int16 (samples,), zeros where there is none; None if there is none at all."""
    sound = np.zeros(spec.samples, dtype=np.int16)
    cursor: int | None = None
    for time, piece in _resampled(decoded_from(container, track, start - SETTLING_TIME), spec.sample_rate):
        stamped = round((time - start) * spec.sample_rate)
        if cursor is None or abs(stamped - cursor) > GAP * spec.sample_rate:
            cursor = stamped
        first, last = max(cursor, 0), min(cursor + len(piece), spec.samples)
        if first < last:
            sound[first:last] = piece[first - cursor : last - cursor]
        cursor += len(piece)
        if cursor >= spec.samples:
            return sound
    wanted = start + spec.samples / spec.sample_rate
    require_reached(track, wanted, reached=start + (cursor or 0) / spec.sample_rate)
    return None if cursor is None else sound


def _resampled(
    frames: Iterator[tuple[float, AudioFrame | VideoFrame]], rate: int
) -> Iterator[tuple[float, np.ndarray]]:
    """Convert frames to 16-bit mono at `rate`: yields the time of the first sample, and int16 (samples,)."""
    resampler = av.AudioResampler(format="s16", layout="mono", rate=rate)
    sounds = (frame for _, frame in frames if isinstance(frame, AudioFrame))
    for sound in chain(sounds, [None]):  # None: hand out what the resampler still holds.
        for piece in resampler.resample(sound):
            if piece is not None and piece.time is not None:
                yield piece.time, piece.to_ndarray()[0]
