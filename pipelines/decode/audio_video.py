"""Audio and video decoding with PyAV (FFmpeg): a window in time to arrays of fixed shape.

The frames and the audio of a video are cut from one window. Only the timestamps keep them in sync:

1. The window starts at a time chosen so that the window lies inside the track.
2. Frames: seek to a keyframe before that time and decode forward. For each instant start + i / rate, take the frame
   shown at that instant: the last one whose timestamp is not later.
3. Audio: seek a little earlier, because codecs need some packets before their output is correct, and place the
   resampled audio at (timestamp - start) * rate. Encoder priming and a track that starts late have timestamps that
   account for them. Counting samples from the beginning of the file would shift the audio by those amounts.
"""

from collections.abc import Iterator

import numpy as np
from av.audio.stream import AudioStream
from av.video.frame import VideoFrame
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from PIL import Image

from perceiver_dist.modalities import AudioInput, VideoInput
from pipelines.augment.image_transform import NO_TRANSFORM, ImageTransform
from pipelines.decode.container import (
    MediaFile,
    audio_track,
    beginning,
    decoded_from,
    has_cover,
    opened,
    require_reached,
    video_track,
    window_start,
)
from pipelines.decode.image import fit_image
from pipelines.decode.resampling import resampled
from pipelines.errors import SampleError
from pipelines.limits import DEFAULT_LIMITS, Limits

TIMESTAMP_SLACK = 0.001
"""Seconds by which a frame's timestamp may be late and the frame still counts as shown: Matroska rounds to ms."""

SETTLING_TIME = 0.2
"""Seconds of audio decoded before the window and dropped: Opus needs 0.08 s, AAC and MP3 need two packets."""

GAP = 0.02
"""Seconds by which a timestamp must differ from the sample count before audio is moved. Smaller differences are
rounding, such as Matroska's to milliseconds."""


def decode_audio(
    data: bytes, spec: AudioInput, position: float, limits: Limits = DEFAULT_LIMITS
) -> np.ndarray:
    """Decode a window of an audio file to mono at the requested rate.

    Args:
        data: A whole FLAC, WAV, MP3, OGG (Vorbis, Opus), M4A or AAC file.
        spec: Sample rate and length of the window.
        position: Position of the window among its possible starts: 0 first, 0.5 center, 1 last.
        limits: Bounds on what the file may claim.

    Returns:
        int16 (samples,), padded with silence at the end if the audio is shorter.

    Raises:
        SampleError: The bytes are empty, truncated, of another format, without audio, or claim more than the limits.
    """
    with opened(data, "audio", limits) as media:
        track = audio_track(media, limits)
        if track is None:
            raise SampleError("audio has no audio track")
        start = window_start(media, track, spec.samples / spec.sample_rate, position)
        sound = _read_sound(media, track, start, spec)
    if sound is None:
        raise SampleError("audio has no samples that can be decoded")
    return sound


def decode_video(
    data: bytes,
    video: VideoInput | None,
    audio: AudioInput | None,
    position: float,
    limits: Limits = DEFAULT_LIMITS,
    transform: ImageTransform = NO_TRANSFORM,
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Decode a window of a video: frames, audio, or both, starting at the same instant.

    Args:
        data: A whole MP4, M4V, MOV, 3GP, WebM, MKV, AVI, MPG or TS file.
        video: Frames to decode; None for none.
        audio: Audio to decode; None for none.
        position: Position of the longer of the two windows among its possible starts: 0 first, 0.5 center, 1 last.
        limits: Bounds on what the file may claim.
        transform: Crop and augmentation, the same for all frames.

    Returns:
        Frames, uint8 (frames, height, width, channels), or None if not requested; a video shorter than the window
        repeats its last frame. Audio, int16 (samples,), or None if not requested or if it has no audio track;
        silence where the track has no audio.

    Raises:
        SampleError: The bytes are empty, truncated, of another format, without the requested frames, or claim more
            than the limits.
    """
    with opened(data, "video", limits) as media:
        pictures = video_track(media, limits) if video else None
        sounds = audio_track(media, limits) if audio else None
        if video and pictures is None and not (sounds and has_cover(media)):
            raise SampleError("video has no video track")
        clock = pictures or sounds
        if clock is None:
            return None, None
        window = max(
            video.frames / video.frames_per_second if video else 0.0,
            audio.samples / audio.sample_rate if audio else 0.0,
        )
        start = window_start(media, clock, window, position)
        frames = _read_frames(media, pictures, start, video, transform) if pictures and video else None
        if sounds is None or audio is None:
            return frames, None
        sound = _read_sound(media, sounds, start, audio)
        return frames, np.zeros(audio.array_shape, np.int16) if sound is None else sound


def _read_frames(
    media: MediaFile, track: VideoStream, start: float, spec: VideoInput, transform: ImageTransform
) -> np.ndarray:
    """Decode the frames shown at start + i / frames_per_second: uint8 (frames, height, width, channels).

    Raises:
        SampleError: Not one frame can be decoded.
    """
    instants = [start + i / spec.frames_per_second + TIMESTAMP_SLACK for i in range(spec.frames)]
    # Each frame is copied while it is still in the CPU's cache; a list stacked at the end would be one more pass.
    frames = np.empty(spec.array_shape, spec.array_dtype)
    shown = 0
    shrinker = VideoReformatter()
    current, reached = None, start
    for time, frame in _frames_from(media, track, start):
        due = sum(instant < time for instant in instants)
        if current is not None and due > shown:
            frames[shown:due] = _fit_frame(current, spec, shrinker, transform)
            shown = due
        if shown == spec.frames:
            break
        current, reached = frame, time + float(frame.duration * (frame.time_base or 0))
    if current is None:
        raise SampleError("video has no frames that can be decoded")
    if shown < spec.frames:
        require_reached(media, track, instants[-1], reached)
        frames[shown:] = _fit_frame(current, spec, shrinker, transform)
    return frames


def _frames_from(media: MediaFile, track: VideoStream, start: float) -> Iterator[tuple[float, VideoFrame]]:
    """Yield times and frames in order, starting with one at or before `start` if there is one.

    Containers look up keyframes by decoding time, which is earlier than presentation time: the keyframe found may be
    shown only after `start`. In that case, seek further back.
    """
    step_back = 0.0
    while True:
        decoded = decoded_from(media, track, start - step_back)
        frames = ((time, frame) for time, frame in decoded if isinstance(frame, VideoFrame))
        first = next(frames, None)
        at_beginning = start - step_back <= beginning(media)
        if at_beginning or (first and first[0] <= start + TIMESTAMP_SLACK):
            break
        # Doubling needs few seeks. Half a second exceeds the usual reordering delay, a few frames.
        step_back = 2 * step_back + 0.5
    if first:
        yield first
        yield from frames


def _fit_frame(
    frame: VideoFrame, spec: VideoInput, shrinker: VideoReformatter, transform: ImageTransform
) -> np.ndarray:
    """Turn a frame upright and fit it as an image is fitted: uint8 (height, width, channels).

    FFmpeg scales it down first, which is several times cheaper in the frame's own pixel format than in RGB.
    """
    # Phones store sideways video with a rotation in the track header, in multiples of 90 degrees.
    quarter_turns = round(frame.rotation / 90)
    width, height = (frame.height, frame.width) if quarter_turns % 2 else (frame.width, frame.height)
    left, top, right, bottom = transform.crop_box(width, height, spec.width / spec.height)
    scale = max(spec.height / (bottom - top), spec.width / (right - left))
    size = (round(frame.width * scale), round(frame.height * scale))
    small = shrinker.reformat(frame, *size, "rgb24", interpolation="BICUBIC", threads=1)
    pixels = np.rot90(small.to_ndarray(), k=quarter_turns)
    box = transform.crop_box(pixels.shape[1], pixels.shape[0], spec.width / spec.height)
    left, top, right, bottom = (int(edge) for edge in box)
    fits = (left, top, right, bottom) == tuple(box) and (right - left, bottom - top) == (
        spec.width,
        spec.height,
    )
    if fits and spec.channels == pixels.shape[2] and transform.keeps_pixels:
        # What `fit_image` would return, without the copies that Pillow makes: a fifth of the time of a clip.
        return pixels[top:bottom, left:right]
    upright = Image.fromarray(pixels)
    return fit_image(upright, spec.height, spec.width, spec.channels, box, transform)


def _read_sound(media: MediaFile, track: AudioStream, start: float, spec: AudioInput) -> np.ndarray | None:
    """Decode the audio from `start` on: int16 (samples,), zeros where there is none; None if the track has none."""
    sound = np.zeros(spec.samples, dtype=np.int16)
    cursor: int | None = None
    for time, piece in resampled(decoded_from(media, track, start - SETTLING_TIME), spec.sample_rate):
        stamped = round((time - start) * spec.sample_rate)
        if cursor is None or abs(stamped - cursor) > GAP * spec.sample_rate:
            cursor = stamped
        first, last = max(cursor, 0), min(cursor + len(piece), spec.samples)
        if first < last:
            # A piece may begin before the window, or after a gap.
            sound[first:last] = piece[first - cursor : last - cursor]
        cursor += len(piece)
        if cursor >= spec.samples:
            return sound
    wanted = start + spec.samples / spec.sample_rate
    require_reached(media, track, wanted, reached=start + (cursor or 0) / spec.sample_rate)
    return None if cursor is None else sound
