"""Tests of audio and video decoding, on media encoded here: a flash in the frames and a click in the audio mark an
instant."""

import struct
from collections.abc import Callable
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from av.audio.stream import AudioStream
from av.container import OutputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from perceiver_dist.modalities import AudioInput, VideoInput
from pipelines.decode import decode_audio, decode_video
from pipelines.errors import SampleError

SECONDS = 3.0
VIDEO = VideoInput(frames=16, frames_per_second=16.0)
AUDIO = AudioInput(sample_rate=8000, samples=8192)
FLASH = 1.5  # Start of the flash and of the click, in seconds; both last 0.1 s.
CLIPS = {
    "mp4": ("libx264", "aac"),
    "mov": ("libx264", "aac"),
    "mkv": ("libx264", "libopus"),
    "webm": ("libvpx-vp9", "libopus"),
    "avi": ("mpeg4", "libmp3lame"),
}
AUDIO_FILES = {"flac": "flac", "wav": "pcm_s16le", "mp3": "libmp3lame", "ogg": "libopus"}


def click_track(rate: int, channels: int = 1, click: float = FLASH) -> np.ndarray:
    """Return a tone burst of 0.1 s in silence: int16 (channels, samples)."""
    time = np.arange(int(SECONDS * rate)) / rate
    burst = np.where((time >= click) & (time < click + 0.1), np.sin(2 * np.pi * 1000 * time), 0)
    return np.tile((burst * 20000).astype(np.int16), (channels, 1))


def add_audio(
    container: OutputContainer, codec: str, sound: np.ndarray, rate: int, delay: float = 0.0
) -> list["Packet[Any]"]:
    """Encode int16 (channels, samples) in a new stream that starts `delay` seconds late."""
    layout = "stereo" if len(sound) == 2 else "mono"
    stream = container.add_stream(codec, rate=rate, layout=layout)
    assert isinstance(stream, AudioStream)
    frame = av.AudioFrame.from_ndarray(sound.T.reshape(1, -1).copy(), format="s16", layout=layout)
    frame.sample_rate, frame.pts, frame.time_base = rate, round(delay * rate), Fraction(1, rate)
    pieces = av.AudioResampler(stream.format, layout, rate, stream.frame_size or 0).resample(frame)
    return [packet for piece in [*pieces, None] for packet in stream.encode(piece)]


def add_frames(
    container: OutputContainer, codec: str, fps: int, pictures: np.ndarray, delay: float = 0.0
) -> list["Packet[Any]"]:
    """Encode uint8 (frames, height, width, 3) in a new stream that starts `delay` seconds late."""
    stream = container.add_stream(codec, rate=fps)
    assert isinstance(stream, VideoStream)
    stream.height, stream.width, stream.pix_fmt = *pictures.shape[1:3], "yuv420p"
    stream.codec_context.gop_size = 10
    frames = [av.VideoFrame.from_ndarray(picture, format="rgb24") for picture in pictures]
    for number, frame in enumerate(frames):
        frame.pts = number + round(delay * fps)
    return [packet for frame in [*frames, None] for packet in stream.encode(frame)]


def flashes(fps: int, flash: float = FLASH) -> np.ndarray:
    """Return black frames, white for 0.1 s: uint8 (frames, 48, 64, 3)."""
    time = np.arange(int(SECONDS * fps)) / fps
    shade = np.where((time >= flash) & (time < flash + 0.1), 255, 0).astype(np.uint8)
    return np.tile(shade[:, None, None, None], (1, 48, 64, 3))


def mux(extension: str, *tracks: Callable[[OutputContainer], list["Packet[Any]"]]) -> bytes:
    """Interleave the packets of tracks, functions that encode into a container, in one file."""
    target = BytesIO()
    with av.open(target, "w", format={"mkv": "matroska"}.get(extension, extension)) as container:
        packets = [packet for track in tracks for packet in track(container)]
        for packet in sorted(packets, key=lambda each: (each.dts or 0) * (each.time_base or 0)):
            container.mux(packet)
    return target.getvalue()


def make_clip(extension: str, fps: int = 30, rate: int = 48000) -> bytes:
    video_codec, audio_codec = CLIPS[extension]
    return mux(
        extension,
        lambda container: add_frames(container, video_codec, fps, flashes(fps)),
        lambda container: add_audio(container, audio_codec, click_track(rate, channels=2), rate),
    )


def make_audio(extension: str, sound: np.ndarray, rate: int) -> bytes:
    return mux(extension, lambda container: add_audio(container, AUDIO_FILES[extension], sound, rate))


def silent_clip(extension: str, pictures: np.ndarray, fps: int = 30) -> bytes:
    return mux(extension, lambda container: add_frames(container, CLIPS[extension][0], fps, pictures))


def flash_and_click(data: bytes, position: float) -> tuple[float, float]:
    """Return the times in the window, in seconds, of the first white frame and of the first loud sample."""
    frames, sound = decode_video(data, VIDEO, AUDIO, position)
    assert frames is not None
    assert sound is not None
    assert frames.shape == VIDEO.array_shape
    assert sound.shape == AUDIO.array_shape
    flash = float(np.argmax(frames.mean(axis=(1, 2, 3)) > 128)) / VIDEO.frames_per_second
    return flash, float(np.argmax(np.abs(sound.astype(int)) > 5000)) / AUDIO.sample_rate


def decode_frames(data: bytes, spec: VideoInput, position: float) -> np.ndarray:
    """Decode frames without audio."""
    frames, _ = decode_video(data, spec, None, position)
    assert frames is not None
    return frames


@pytest.mark.parametrize("position", [0.3, 0.5, 0.71])
@pytest.mark.parametrize("extension", CLIPS)
def test_frames_and_audio_stay_in_sync_at_every_window_position(extension: str, position: float) -> None:
    flash, click = flash_and_click(make_clip(extension), position)
    assert flash > 0
    assert click > 0
    assert abs(flash - click) <= 1 / VIDEO.frames_per_second


def test_the_position_sets_the_start_of_the_window() -> None:
    _, first = flash_and_click(make_clip("mp4"), 0.3)
    _, last = flash_and_click(make_clip("mp4"), 0.7)
    room = SECONDS - AUDIO.samples / AUDIO.sample_rate
    assert first - last == pytest.approx(0.4 * room, abs=0.001)
    assert first == pytest.approx(FLASH - 0.3 * room, abs=0.001)


@pytest.mark.parametrize(("video_delay", "audio_delay"), [(0.4, 0.0), (0.0, 0.4)])
@pytest.mark.parametrize("extension", ["mp4", "mkv"])
def test_a_track_that_starts_late_stays_in_sync(
    extension: str, video_delay: float, audio_delay: float
) -> None:
    video_codec, audio_codec = CLIPS[extension]
    data = mux(
        extension,
        lambda container: add_frames(
            container, video_codec, 30, flashes(30, FLASH - video_delay), video_delay
        ),
        lambda container: add_audio(
            container, audio_codec, click_track(48000, 1, FLASH - audio_delay), 48000, audio_delay
        ),
    )
    flash, click = flash_and_click(data, 0.4)
    assert click > 0
    assert abs(flash - click) <= 1 / VIDEO.frames_per_second


@pytest.mark.parametrize("rate", [8000, 44100, 48000])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("extension", ["flac", "wav", "mp3"])
def test_audio_of_any_format_rate_and_channels_gives_the_same_window(
    extension: str, channels: int, rate: int
) -> None:
    sound = decode_audio(make_audio(extension, click_track(rate, channels), rate), AUDIO, 0.5)
    loud = np.flatnonzero(np.abs(sound.astype(int)) > 5000) / AUDIO.sample_rate
    assert sound.dtype == np.int16
    assert loud[0] == pytest.approx(AUDIO.samples / AUDIO.sample_rate / 2, abs=0.04)
    assert loud[-1] - loud[0] == pytest.approx(0.1, abs=0.01)


@pytest.mark.parametrize("rate", [8000, 48000])
def test_the_priming_of_opus_in_ogg_is_removed(rate: int) -> None:
    sound = decode_audio(make_audio("ogg", click_track(rate), rate), AUDIO, 0.5)
    first = np.argmax(np.abs(sound.astype(int)) > 5000) / AUDIO.sample_rate
    assert first == pytest.approx(AUDIO.samples / AUDIO.sample_rate / 2, abs=0.005)


@pytest.mark.parametrize("position", [0.0, 0.37, 1.0])
def test_lossless_audio_at_its_own_rate_is_decoded_exactly(position: float) -> None:
    sound = np.random.default_rng(0).integers(-3000, 3000, (1, 30000), dtype=np.int16)
    start = round(position * (30000 - AUDIO.samples))
    decoded = decode_audio(make_audio("flac", sound, 8000), AUDIO, position)
    np.testing.assert_array_equal(decoded, sound[0, start : start + AUDIO.samples])


def test_stereo_is_mixed_down_to_the_mean_of_its_channels() -> None:
    sound = np.stack([np.full(9000, 8000), np.full(9000, 2000)]).astype(np.int16)
    assert decode_audio(make_audio("wav", sound, 8000), AUDIO, 0.0)[100] == pytest.approx(5000, abs=2)


def test_resampling_keeps_the_last_samples() -> None:
    sound = np.full((1, AUDIO.samples * 6), 5000, np.int16)
    decoded = decode_audio(make_audio("flac", sound, 48000), AUDIO, 0.0)
    np.testing.assert_allclose(decoded[100:-1], 5000, atol=600)


def test_short_audio_is_padded_with_silence_at_the_end() -> None:
    decoded = decode_audio(make_audio("flac", np.full((1, 1000), 500, np.int16), 8000), AUDIO, 1.0)
    assert (decoded[:1000] == 500).all()
    assert not decoded[1000:].any()


def test_a_short_video_repeats_its_last_frame() -> None:
    pictures = np.repeat(np.arange(0, 240, 40, dtype=np.uint8), 48 * 64 * 3).reshape(6, 48, 64, 3)
    frames = decode_frames(silent_clip("mp4", pictures, fps=16), VIDEO, 1.0)
    levels = frames.mean(axis=(1, 2, 3))
    np.testing.assert_allclose(levels[:6], np.arange(0, 240, 40), atol=4)
    assert (frames[6:] == frames[5]).all()


def test_a_frame_is_shown_until_the_next_one() -> None:
    pictures = np.repeat(np.arange(0, 240, 10, dtype=np.uint8), 48 * 64 * 3).reshape(24, 48, 64, 3)
    frames = decode_frames(silent_clip("webm", pictures, fps=8), VIDEO, 0.0)
    np.testing.assert_allclose(frames.mean(axis=(1, 2, 3)), np.repeat(np.arange(0, 80, 10), 2), atol=4)


def test_a_video_without_an_audio_track_gives_no_audio() -> None:
    frames, sound = decode_video(silent_clip("mp4", flashes(30)), VIDEO, AUDIO, 0.5)
    assert frames is not None
    assert sound is None


def test_audio_can_be_decoded_without_frames() -> None:
    frames, sound = decode_video(make_clip("mp4"), None, AUDIO, 0.5)
    assert frames is None
    assert sound is not None
    assert np.abs(sound.astype(int)).max() > 5000


def test_a_window_beyond_the_audio_track_is_silent() -> None:
    data = mux(
        "mp4",
        lambda container: add_frames(container, "libx264", 30, flashes(30)),
        lambda container: add_audio(container, "aac", np.full((1, 8000), 9000, np.int16), 8000),
    )
    _, sound = decode_video(data, VIDEO, AUDIO, 1.0)
    assert sound is not None
    assert not sound.any()


def test_frames_are_converted_to_grayscale_and_center_cropped() -> None:
    pictures = np.zeros((16, 48, 64, 3), np.uint8)
    pictures[:, :, 8:56] = 255  # The centered square; the crop removes the black bars beside it.
    grey = VideoInput(frames=2, height=24, width=24, channels=1)
    frames = decode_frames(silent_clip("mp4", pictures, fps=16), grey, 0.0)
    assert frames.shape == (2, 24, 24, 1)
    assert frames[:, :, 1:-1].min() > 230


def test_a_rotated_video_is_turned_upright() -> None:
    pictures = np.zeros((16, 64, 64, 3), np.uint8)
    pictures[:, :, :32] = 255  # White on the left: at the top after a clockwise rotation by 90 degrees.
    level = struct.pack(">9i", 1 << 16, 0, 0, 0, 1 << 16, 0, 0, 0, 1 << 30)
    clockwise = struct.pack(">9i", 0, 1 << 16, 0, -(1 << 16), 0, 0, 0, 0, 1 << 30)
    data = silent_clip("mp4", pictures, fps=16)
    matrix = data.rindex(level)  # The matrix of the track; an earlier one is that of the movie.
    data = data[:matrix] + clockwise + data[matrix + len(level) :]
    frames = decode_frames(data, VIDEO, 0.0)
    assert frames[0, :12].min() > 200
    assert frames[0, -12:].max() < 50


def test_a_late_window_does_not_decode_the_beginning() -> None:
    data = bytearray(silent_clip("mp4", flashes(30)))
    media = data.index(b"mdat") + 4
    data[media : media + 200] = bytes(200)  # Destroy the first keyframe.
    with pytest.raises(SampleError):
        decode_video(bytes(data), VIDEO, None, 0.0)
    frames = decode_frames(bytes(data), VIDEO, 0.6)
    assert frames.max() > 200


@pytest.mark.parametrize(
    "extension", ["mp4", "mov", "mkv", "webm"]
)  # A truncated AVI is read as a shorter video.
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.8])
def test_truncated_videos_are_rejected(extension: str, kept: float) -> None:
    data = make_clip(extension)
    with pytest.raises(SampleError, match=r"truncated|cannot be decoded|no video track"):
        decode_video(data[: int(kept * len(data))], VIDEO, AUDIO, 1.0)


@pytest.mark.parametrize("extension", ["mkv", "webm"])
def test_a_video_track_shorter_than_its_header_states_is_rejected(extension: str) -> None:
    data = silent_clip(extension, flashes(30))
    with pytest.raises(
        SampleError, match=r"video track 0 is truncated: ends at \d.\d\d s, its header states 3.00 s"
    ):
        decode_video(data[: int(0.8 * len(data))], VIDEO, None, 1.0)


@pytest.mark.parametrize("extension", ["flac", "wav", "mp3"])
@pytest.mark.parametrize("kept", [0.05, 0.5, 0.8])
def test_truncated_audio_is_rejected(extension: str, kept: float) -> None:
    data = make_audio(extension, click_track(44100, 2), 44100)
    with pytest.raises(SampleError, match=r"truncated|cannot be decoded"):
        decode_audio(data[: int(kept * len(data))], AUDIO, 1.0)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "is empty"),
        (b"not media at all " * 100, "cannot be decoded"),
    ],
)
def test_bytes_that_are_not_media_are_rejected_with_a_reason(data: bytes, reason: str) -> None:
    with pytest.raises(SampleError, match=reason):
        decode_video(data, VIDEO, AUDIO, 0.5)
    with pytest.raises(SampleError, match=reason):
        decode_audio(data, AUDIO, 0.5)


def test_a_playlist_cannot_open_other_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "clip.mp4").write_bytes(make_clip("mp4"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SampleError, match="cannot be decoded"):
        decode_video(b"ffconcat version 1.0\nfile clip.mp4\n", VIDEO, AUDIO, 0.0)


def test_an_unknown_codec_is_rejected() -> None:
    with pytest.raises(SampleError, match="codec that cannot be decoded"):
        decode_video(silent_clip("mp4", flashes(30)).replace(b"avc1", b"zzzz"), VIDEO, None, 0.5)


def test_a_missing_track_is_reported() -> None:
    with pytest.raises(SampleError, match="no video track"):
        decode_video(make_audio("flac", click_track(8000), 8000), VIDEO, None, 0.5)
    with pytest.raises(SampleError, match="no audio track"):
        decode_audio(silent_clip("mp4", flashes(30)), AUDIO, 0.5)
