"""Conversion of audio, compared with PyAV's own resampler bit by bit."""

import os
from collections.abc import Iterator
from fractions import Fraction
from itertools import chain

import av
import numpy as np
import pytest
from av.audio.frame import AudioFrame

from pipelines.decode.resampling import resampled


def sound(sample_format: str, layout: str, rate: int) -> Iterator[tuple[float, AudioFrame]]:
    """Yield four frames of noise that begin at 1 s."""
    generator = np.random.default_rng(0)
    channels = av.AudioLayout(layout).nb_channels
    for number in range(4):
        noise = generator.uniform(-0.9, 0.9, (channels, 1021))
        if sample_format.startswith("s16"):
            noise = np.round(noise * 32767).astype(np.int16)
        else:
            noise = noise.astype(np.float32 if sample_format.startswith("flt") else np.float64)
        if not sample_format.endswith("p"):
            noise = np.ascontiguousarray(noise.T.reshape(1, -1))
        frame = AudioFrame.from_ndarray(noise, format=sample_format, layout=layout)
        frame.sample_rate, frame.time_base = rate, Fraction(1, rate)
        frame.pts = rate + 1021 * number
        yield float(frame.pts * frame.time_base), frame


@pytest.mark.parametrize("wanted", [8000, 48000])
@pytest.mark.parametrize("rate", [8000, 22050, 44100])
@pytest.mark.parametrize("layout", ["mono", "stereo", "5.1"])
@pytest.mark.parametrize("sample_format", ["s16", "s16p", "flt", "fltp", "dblp"])
def test_the_result_is_that_of_pyav(sample_format: str, layout: str, rate: int, wanted: int) -> None:
    theirs = av.AudioResampler(format="s16", layout="mono", rate=wanted)
    frames = (frame for _, frame in sound(sample_format, layout, rate))
    expected = [piece for frame in chain(frames, [None]) for piece in theirs.resample(frame)]
    found = list(resampled(sound(sample_format, layout, rate), wanted))
    assert found[0][0] == pytest.approx(expected[0].time, abs=1e-9)
    assert np.concatenate([piece for _, piece in found]).tobytes() == b"".join(
        piece.to_ndarray().tobytes() for piece in expected
    )


def test_no_threads_are_started() -> None:
    before = len(os.listdir("/proc/self/task"))
    pieces = resampled(sound("fltp", "stereo", 44100), 8000)
    next(pieces)
    assert len(os.listdir("/proc/self/task")) <= before  # other tests may have left threads that end
    assert list(pieces)


def test_audio_whose_rate_changes_midway_is_refused() -> None:
    with pytest.raises(ValueError, match="rate, format or channels of the audio change midway"):
        list(resampled(chain(sound("fltp", "mono", 44100), sound("fltp", "mono", 22050)), 8000))
