"""Conversion of decoded audio to 16-bit mono at another rate, by FFmpeg's filters.

`av.AudioResampler` does the same with a thread for every core, started anew for each file. That takes longer than to
convert a second of audio, in filters that use one thread: 6 ms instead of 0.1 on two busy cores.
"""

from collections.abc import Iterator
from fractions import Fraction
from itertools import chain

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.filter import Graph
from av.video.frame import VideoFrame

from pipelines.errors import SampleError

_MIXED_CHANNELS = 8
"""Channels up to which FFmpeg mixes to mono by the layout. For more it has weights only if the file names a layout."""


def resampled(
    frames: Iterator[tuple[float, AudioFrame | VideoFrame]], rate: int
) -> Iterator[tuple[float, np.ndarray]]:
    """Convert frames to 16-bit mono at a rate.

    Args:
        frames: Times and decoded frames in order. Those of a video track are passed over.
        rate: Samples per second of the result.

    Yields:
        The time of the first sample in seconds, and int16 (samples,).

    Raises:
        SampleError: A sample of a floating-point format is not a number, or infinite.
        ValueError: Rate, format or channels change midway.
    """
    resampler = _Resampler(rate)
    sounds = (_mixable(frame) for _, frame in frames if isinstance(frame, AudioFrame))
    for sound in chain(sounds, [None]):  # None flushes the samples that the filters still hold.
        for piece in resampler.resample(sound):
            if piece.time is not None:
                yield piece.time, piece.to_ndarray()[0]


class _Resampler:
    """Filters for frames that are all like the first one."""

    def __init__(self, rate: int) -> None:
        self._rate = rate
        self._graph: Graph | None = None
        self._like: tuple[object, ...] = ()

    def resample(self, frame: AudioFrame | None) -> Iterator[AudioFrame]:
        """Yield the frames that are ready after one more frame; None ends the stream.

        Raises:
            ValueError: Rate, format or channels change.
        """
        if frame is not None:
            like = (frame.format.name, frame.layout, frame.sample_rate)
            if self._graph is None:
                self._graph, self._like = self._filters(frame), like
            elif like != self._like:
                raise ValueError("rate, format or channels of the audio change midway")
        if self._graph is None:
            return
        self._graph.push(frame)
        while True:
            try:
                converted = self._graph.pull()
            except (av.error.EOFError, av.error.BlockingIOError):
                return
            yield converted  # type: ignore[misc] # of audio, since the graph has no other input

    def _filters(self, frame: AudioFrame) -> Graph:
        graph = Graph()
        graph.threads = 1
        graph.link_nodes(
            graph.add(
                "abuffer",
                sample_rate=str(frame.sample_rate),
                sample_fmt=frame.format.name,
                channel_layout=frame.layout.name,
                time_base=str(frame.time_base or Fraction(1, frame.sample_rate)),
            ),
            graph.add("aformat", sample_rates=str(self._rate), sample_fmts="s16", channel_layouts="mono"),
            graph.add("abuffersink"),
        ).configure()
        return graph


def _mixable(frame: AudioFrame) -> AudioFrame:
    """Return a frame that FFmpeg can mix to mono: with more channels than it has weights for, their mean.

    Raises:
        SampleError: A sample of a floating-point format is not a number, or infinite.
    """
    is_float = frame.format.name.startswith(("flt", "dbl"))
    channels = frame.layout.nb_channels
    if not is_float and channels <= _MIXED_CHANNELS:
        return frame
    values = frame.to_ndarray()
    if is_float and not np.isfinite(values).all():
        raise SampleError(f"audio has samples that are not finite numbers, at {frame.time or 0:.2f} s")
    if channels <= _MIXED_CHANNELS:
        return frame
    by_channel = values if frame.format.is_planar else values.reshape(-1, channels).T
    mean = by_channel.mean(axis=0, keepdims=True).astype(values.dtype)
    mono = AudioFrame.from_ndarray(mean, format=frame.format.packed.name, layout="mono")
    mono.sample_rate, mono.pts, mono.time_base = frame.sample_rate, frame.pts, frame.time_base
    return mono
