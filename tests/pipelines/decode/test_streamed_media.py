"""Tests of media files that writers to pipes leave, of damaged packets between good ones, and of unusual tracks."""

import struct
from fractions import Fraction
from io import BytesIO
from typing import Any

import av
import numpy as np
import pytest
from pipe_file import Pipe

from perceiver_dist.modalities import AudioInput, VideoInput
from pipelines.decode import container as container_module
from pipelines.decode import decode_audio, decode_video
from pipelines.decode.container import audio_track, opened, window_start
from pipelines.decode.media_headers import with_true_wav_size
from pipelines.errors import SampleError

RATE = 16_000
SOUND = AudioInput(sample_rate=RATE, samples=RATE)
LONG_SOUND = AudioInput(sample_rate=RATE, samples=6 * RATE)
CLIP = VideoInput(frames=4, frames_per_second=25, height=16, width=16)
FRAMES = 76


def tone(seconds: float = 3.0, height: int = 10_000) -> np.ndarray:
    """Return int16 (samples,)."""
    return (height * np.sin(np.arange(int(seconds * RATE)) / 5)).astype(np.int16)


def sound_file(
    form: str, codec: str, target: Any, sound: np.ndarray, bit_rate: int = 0, **options: str
) -> None:
    with av.open(target, "w", format=form, options=options) as container:
        stream = container.add_stream(codec, rate=RATE, layout="mono")
        assert isinstance(stream, av.AudioStream)
        if bit_rate:
            stream.bit_rate = bit_rate
        frame = av.AudioFrame.from_ndarray(sound[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = RATE, 0, Fraction(1, RATE)
        resampler = av.AudioResampler(stream.format, "mono", RATE, stream.frame_size or 1024)
        pieces = [*resampler.resample(frame), *resampler.resample(None)]
        container.mux([packet for piece in [*pieces, None] for packet in stream.encode(piece)])


def clip_file(form: str, codec: str, target: Any, gop: int = 12) -> None:
    """Write frames whose brightness is three times their number."""
    with av.open(target, "w", format=form) as container:
        stream = container.add_stream(codec, rate=25)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height = 64, 64
        stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
        stream.codec_context.gop_size = gop
        shades = [np.full((64, 64, 3), 3 * number, np.uint8) for number in range(FRAMES)]
        frames = [av.VideoFrame.from_ndarray(shade, format="rgb24") for shade in shades]
        container.mux([packet for frame in [*frames, None] for packet in stream.encode(frame)])


def wav(sound: np.ndarray) -> bytes:
    target = BytesIO()
    sound_file("wav", "pcm_s16le", target, sound)
    return target.getvalue()


def with_sizes(data: bytes, size: int) -> bytes:
    place = data.index(b"data") + 4
    stated = struct.pack("<I", size)
    return data[:4] + stated + data[8:place] + stated + data[place + 4 :]


def loudness(data: bytes, position: float = 0.5, spec: AudioInput = SOUND) -> float:
    return float(np.sqrt((decode_audio(data, spec, position).astype(float) ** 2).mean()))


def brightness(data: bytes, position: float) -> list[int]:
    frames, _ = decode_video(data, CLIP, None, position)
    assert frames is not None
    return [round(float(frame.mean()) / 3) for frame in frames]


@pytest.mark.parametrize(
    "size", [0, 0x7FFF0000, 0x7FFFF000, 0x7FFFFFFF - 36, 0x80000000, 0xFFFFFFFF - 36, 0xFFFFFFFF]
)
def test_a_wav_file_with_a_placeholder_for_its_size_is_whole(size: int) -> None:
    data = wav(tone())
    streamed, expected = with_sizes(data, size), decode_audio(data, LONG_SOUND, 1.0)
    np.testing.assert_array_equal(decode_audio(streamed, LONG_SOUND, 1.0), expected)
    # The writer was interrupted within a sample.
    expected[3 * RATE - 2 :] = 0
    np.testing.assert_array_equal(decode_audio(streamed[:-3], LONG_SOUND, 1.0), expected)


def test_a_wav_file_that_breaks_a_true_claim_is_truncated() -> None:
    with pytest.raises(SampleError, match="is truncated or damaged"):
        decode_audio(wav(tone())[:-1000], SOUND, 1.0)


def test_true_sizes_of_wav_files_are_kept() -> None:
    data = wav(tone(0.5))
    place = data.index(b"data")
    empty = data[:place] + b"data\0\0\0\0" + b"LIST\4\0\0\0abcd"
    for same in (data, data[:-1000], empty, data[:place], data[:20], b"RIFF", b""):
        assert with_true_wav_size(same) == same


def test_an_rf64_file_with_a_placeholder_is_whole() -> None:
    target = BytesIO()
    sound_file("wav", "pcm_s16le", target, tone(), rf64="always")
    data = target.getvalue()
    place = data.index(b"ds64") + 16
    for size in (0, 2**64 - 1):
        streamed = data[:place] + size.to_bytes(8, "little") + data[place + 8 :]
        assert loudness(streamed, 1.0) == pytest.approx(7071, rel=0.01)


@pytest.mark.parametrize(
    ("form", "codec"),
    [("wav", "pcm_s16le"), ("flac", "flac"), ("mp3", "libmp3lame"), ("ogg", "libopus"), ("adts", "aac")],
)
def test_sounds_written_to_a_pipe_are_whole(form: str, codec: str) -> None:
    pipe = Pipe()
    sound_file(form, codec, pipe, tone())
    for position in (0.0, 0.5, 1.0):
        assert loudness(bytes(pipe.content), position) == pytest.approx(7071, rel=0.1)
    assert loudness(bytes(pipe.content), 0.5, LONG_SOUND) == pytest.approx(7071 * 0.5**0.5, rel=0.1)


@pytest.mark.parametrize(("first", "second"), [(16_000, 128_000), (128_000, 16_000)])
def test_the_length_of_an_mp3_file_of_variable_bit_rate_is_found(first: int, second: int) -> None:
    """Two bit rates joined, and no header that says how long they are: FFmpeg's estimate is far off."""
    parts = []
    for bit_rate, height in ((first, 3000), (second, 10_000)):
        target = BytesIO()
        sound_file(
            "mp3", "libmp3lame", target, tone(3.0, height), bit_rate, write_xing="0", id3v2_version="0"
        )
        parts.append(target.getvalue())
    data = b"".join(parts)
    assert loudness(data, 0.0) == pytest.approx(2121, rel=0.15)
    assert loudness(data, 1.0) == pytest.approx(7071, rel=0.15)
    assert loudness(data[: len(parts[0]) // 2], 1.0) == pytest.approx(2121, rel=0.15)


def test_joined_mp3_files_are_one_sound_at_any_position() -> None:
    """The first one's tag has the length of the first alone; the second one's tag is a damaged packet in between."""
    target = BytesIO()
    sound_file("mp3", "libmp3lame", target, tone(3.0))
    data = 2 * target.getvalue()
    for position in np.linspace(0, 1, 41):
        assert loudness(data, float(position)) > 5000
    assert loudness(data, 0.0, LONG_SOUND) == pytest.approx(7071, rel=0.1)


def test_what_follows_the_sound_of_an_mp3_file_does_not_make_it_a_joined_one() -> None:
    target = BytesIO()
    sound_file("mp3", "libmp3lame", target, tone(3.0))
    data = target.getvalue() + b"TAG" + bytes(125)
    with pytest.raises(SampleError, match="is truncated"):
        decode_audio(data[:2000] + data[-128:], SOUND, 1.0)
    assert loudness(data, 1.0) == pytest.approx(7071, rel=0.1)


def test_a_file_that_ends_within_its_first_packet_says_so() -> None:
    target = BytesIO()
    sound_file("ogg", "libopus", target, tone(1.0))
    with pytest.raises(SampleError, match="it ends before its first packet is complete"):
        decode_audio(target.getvalue()[:1000], SOUND, 0.0)


def test_a_file_of_another_kind_is_said_to_be_one() -> None:
    target = BytesIO()
    sound_file("aiff", "pcm_s16be", target, tone(1.0))
    with pytest.raises(SampleError, match="it is of a format that is not read here"):
        decode_audio(target.getvalue(), SOUND, 0.0)


def test_a_file_without_a_length_is_read_once_to_find_it(monkeypatch: pytest.MonkeyPatch) -> None:
    target = BytesIO()
    sound_file("adts", "aac", target, tone(3.0))
    with opened(target.getvalue(), "audio") as media:
        track = audio_track(media)
        assert track is not None
        # From here on it must not be searched for.
        monkeypatch.delattr(container_module, "_found_extent")
        assert window_start(media, track, 1.0, position=1.0) == pytest.approx(2.0, abs=0.1)


def test_an_mp3_file_that_breaks_the_claim_of_its_header_is_truncated() -> None:
    target = BytesIO()
    sound_file("mp3", "libmp3lame", target, tone())
    with pytest.raises(SampleError, match="is truncated"):
        decode_audio(target.getvalue()[:-3000], SOUND, 1.0)


@pytest.mark.parametrize(
    ("form", "codec"),
    [
        ("avi", "mpeg4"),
        ("avi", "mjpeg"),
        ("matroska", "mpeg4"),
        ("mpegts", "libx264"),
        ("mpeg", "mpeg2video"),
    ],
)
def test_clips_written_to_a_pipe_are_whole(form: str, codec: str) -> None:
    pipe = Pipe()
    clip_file(form, codec, pipe)
    begin, end = (brightness(bytes(pipe.content), position) for position in (0.0, 1.0))
    assert begin == pytest.approx([0, 1, 2, 3], abs=3)  # codecs of television have no black below 16
    # An MPEG program states no end; FFmpeg's is a few frames early.
    assert end == pytest.approx([72, 73, 74, 75], abs=15 if form == "mpeg" else 2)


@pytest.mark.parametrize(
    ("form", "codec"),
    [
        ("mp4", "libx264"),
        ("3gp", "mpeg4"),
        ("mpegts", "libx264"),
        ("mpegts", "mpeg2video"),
        ("mpeg", "mpeg1video"),
    ],
)
def test_a_clip_with_a_single_keyframe_is_read_from_its_beginning(form: str, codec: str) -> None:
    target = BytesIO()
    clip_file(form, codec, target, gop=250)
    assert brightness(target.getvalue(), 0.0) == pytest.approx([0, 1, 2, 3], abs=3)


def damaged(data: bytes, track: str, numbers: list[int]) -> bytes:
    """Overwrite some packets of a file with ones."""
    with av.open(BytesIO(data), "r") as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(**{track: 0}) if packet.size]
    changed = bytearray(data)
    for number in numbers:
        position, size = packets[number]
        assert position is not None
        changed[position : position + size] = b"\xff" * size
    return bytes(changed)


def test_one_damaged_packet_between_good_ones_is_silence() -> None:
    target = BytesIO()
    sound_file("ipod", "aac", target, tone())
    data = target.getvalue()
    whole, holed = decode_audio(data, SOUND, 0.0), decode_audio(damaged(data, "audio", [8]), SOUND, 0.0)
    changed = np.flatnonzero(whole != holed)
    # An AAC packet has 1,024 samples, and overlaps with the next.
    assert 0 < len(changed) <= 3 * 1024
    assert np.abs(np.diff(changed)).max() < 1024


def test_a_frame_that_cannot_be_decoded_is_the_one_before() -> None:
    target = BytesIO()
    clip_file("mp4", "mjpeg", target)
    assert brightness(damaged(target.getvalue(), "video", [2]), 0.0) == [0, 1, 1, 3]


@pytest.mark.parametrize("numbers", [[0], [75], [1, 2, 3], [10, 12, 14, 16, 18, 20, 22, 24, 26, 28]])
def test_a_track_with_more_damage_is_rejected(numbers: list[int]) -> None:
    target = BytesIO()
    clip_file("mp4", "mjpeg", target)
    long = VideoInput(frames=FRAMES, frames_per_second=25, height=16, width=16)
    with pytest.raises(SampleError, match="video track 0 is truncated or damaged at byte"):
        decode_video(damaged(target.getvalue(), "video", numbers), long, None, 0.0)


def float_wav(values: np.ndarray) -> bytes:
    form = struct.pack("<HHIIHH", 3, 1, RATE, 4 * RATE, 4, 32)
    content = values.astype("<f4").tobytes()
    body = b"fmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(content)) + content
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WAVE" + body


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_sound_with_values_that_are_no_numbers_is_bad(value: float) -> None:
    values = tone() / 32768
    assert loudness(float_wav(values)) == pytest.approx(7071, rel=0.01)
    values[20_000] = value
    with pytest.raises(SampleError, match=r"audio has samples that are not finite numbers, at 1.2"):
        decode_audio(float_wav(values), LONG_SOUND, 0.0)


@pytest.mark.parametrize("channels", [1, 2, 6, 8, 9, 11, 16, 32, 64])
def test_any_number_of_channels_is_mixed(channels: int) -> None:
    guid = bytes.fromhex("000000001000800000aa00389b71")
    form = struct.pack(
        "<HHIIHHHHIH", 0xFFFE, channels, RATE, 2 * channels * RATE, 2 * channels, 16, 22, 16, 0, 1
    )
    content = np.repeat(tone()[:, None], channels, 1).astype("<i2").tobytes()
    fmt = form + guid
    body = b"fmt " + struct.pack("<I", len(fmt)) + fmt + b"data" + struct.pack("<I", len(content)) + content
    data = b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WAVE" + body
    assert loudness(data) == pytest.approx(7071, rel=0.06)


def with_cover(form: str, codec: str, cover: bytes) -> bytes:
    target = BytesIO()
    with av.open(target, "w", format=form) as container:
        stream = container.add_stream(codec, rate=RATE, layout="mono")
        picture = container.add_stream("mjpeg", rate=1)
        assert isinstance(stream, av.AudioStream)
        assert isinstance(picture, av.VideoStream)
        picture.width, picture.height, picture.pix_fmt = 64, 64, "yuvj420p"
        picture.disposition = av.stream.Disposition.attached_pic
        frame = av.AudioFrame.from_ndarray(tone()[None], format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = RATE, 0, Fraction(1, RATE)
        pieces = av.AudioResampler(stream.format, "mono", RATE, stream.frame_size or 1024).resample(frame)
        packet = av.Packet(cover)
        packet.stream, packet.pts, packet.dts = picture, 0, 0
        container.mux([packet, *(each for piece in [*pieces, None] for each in stream.encode(piece))])
    return target.getvalue()


@pytest.mark.parametrize("cover", [b"no picture", b"\xff\xd8\xff" + bytes(100)])
def test_a_cover_picture_is_no_clip_and_does_not_cost_the_sound(cover: bytes) -> None:
    mp3 = with_cover("mp3", "libmp3lame", cover)
    assert loudness(mp3) == pytest.approx(7071, rel=0.1)
    m4a = with_cover("mp4", "aac", cover)
    frames, sound = decode_video(m4a, CLIP, SOUND, 0.5)
    assert frames is None
    assert sound is not None
    with pytest.raises(SampleError, match="no video track"):
        decode_video(m4a, CLIP, None, 0.5)
