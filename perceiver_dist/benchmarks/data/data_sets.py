"""Data sets for the data benchmarks: photographs, clips with sound, recordings and tiny pictures.

The photographs are crops of the two that come with scikit-learn, with varied place, size and brightness, so that files
have the size and detail of real ones. Shards are written once and are deterministic to the byte.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import OutputContainer
from PIL import Image
from sklearn.datasets import load_sample_images

from perceiver_dist.modalities import AudioInput, ImageInput, ModalityInput, VideoInput
from pipelines.demo.resolve import resolve_shards
from pipelines.shards.shard_writer import Sample, write_shards
from pipelines.shards.source import SourceConfig
from pipelines.storage.shard_list import expand_shards

_SHARDS = 8
"""Shards per data set: enough for shard shuffling, and for every worker of a small machine to have some."""
_COMPLETE = "complete"
"""File that is written last, so that a data set whose writing was interrupted is written again."""
_X264_OPTIONS = {"preset": "veryfast", "threads": "1", "x264-params": "mbtree=0"}
"""One thread, and no macroblock tree, which reads beyond the frame: otherwise bytes differ between runs
(docs/experiments.md)."""


@dataclass(frozen=True)
class DataSet:
    """A data set and what its samples are decoded to.

    Attributes:
        source: Shards and modalities.
        inputs: Decoded form of each modality.
        batch: Samples in a batch.
    """

    source: SourceConfig
    inputs: dict[str, ModalityInput]
    batch: int

    @property
    def shards(self) -> list[str]:
        """Paths of the shards."""
        return expand_shards(self.source.train_shards, self.source.name)


def make_data_set(name: str, folder: Path) -> DataSet:
    """Return one of `DATA_SETS`; writes its shards if they do not exist yet.

    Args:
        name: Name of the data set.
        folder: Folder of the shards.
    """
    inputs, batch, samples, count = DATA_SETS[name]
    shards = resolve_shards("demo:fashion_mnist/train-*.tar", str(folder), name)
    if samples is not None:
        place = folder / name
        if not (place / _COMPLETE).is_file():
            write_shards(samples(count), place, "train", -(-count // _SHARDS))
            (place / _COMPLETE).touch()
        shards = f"{place}/train-*.tar"
    return DataSet(SourceConfig(name, shards, list(inputs), num_classes=10), inputs, batch)


def _photographs(count: int) -> Iterator[Sample]:
    """Yield JPEG files of 500 x 375 pixels, 45 kB on average: the usual size of ImageNet's pictures."""
    for number, random, photograph in _numbered_photographs(count):
        crop = _random_crop(photograph, random, (500, 375))
        file = BytesIO()
        crop.save(file, "JPEG", quality=90)
        yield {"__key__": f"{number:06d}", "jpg": file.getvalue(), "cls": number % 10}


def _recordings(count: int) -> Iterator[Sample]:
    """Yield FLAC files of 10 seconds at 44.1 kHz: four tones, and noise so that they compress like real sound."""
    rate, seconds = 44_100, 10
    time = np.arange(rate * seconds) / rate
    for number in range(count):
        random = np.random.default_rng(number)
        wave = sum(
            np.sin(2 * np.pi * random.uniform(80, 3000) * time + random.uniform(0, 6)) for _ in range(4)
        )
        wave = 5000 * wave + 300 * random.standard_normal(len(time))
        file = BytesIO()
        with av.open(file, "w", format="flac") as container:
            _encode_sound(container, container.add_stream("flac", rate, layout="mono"), wave.astype(np.int16))
        yield {"__key__": f"{number:06d}", "flac": file.getvalue(), "cls": number % 10}


def _clips(count: int) -> Iterator[Sample]:
    """Yield MP4 files of 4 seconds: H.264 with 400 x 224 pixels at 24 frames per second, and AAC."""
    rate, seconds, frames_per_second = 44_100, 4, 24
    for number, random, photograph in _numbered_photographs(count):
        wide = _random_crop(photograph, random, (600, 336))
        file = BytesIO()
        with av.open(file, "w", format="mp4") as container:
            video = container.add_stream("libx264", frames_per_second, _X264_OPTIONS)
            video.width, video.height, video.pix_fmt = 400, 224, "yuv420p"
            audio = container.add_stream("aac", rate, layout="mono")
            for index in range(seconds * frames_per_second):
                shift = index / (seconds * frames_per_second)
                left, top = round(200 * shift), round(112 * shift)
                picture = np.asarray(wide.crop((left, top, left + 400, top + 224)))
                frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
                frame.pts = index
                container.mux(video.encode(frame))
            container.mux(video.encode(None))
            wave = 5000 * np.sin(2 * np.pi * random.uniform(80, 3000) * np.arange(rate * seconds) / rate)
            _encode_sound(container, audio, wave.astype(np.int16))
        yield {"__key__": f"{number:06d}", "mp4": file.getvalue(), "cls": number % 10}


def _numbered_photographs(count: int) -> Iterator[tuple[int, np.random.Generator, Image.Image]]:
    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    for number in range(count):
        yield number, np.random.default_rng(number), photographs[number % len(photographs)]


def _random_crop(photograph: Image.Image, random: np.random.Generator, size: tuple[int, int]) -> Image.Image:
    scale = random.uniform(0.6, 1.0) * min(photograph.width / size[0], photograph.height / size[1])
    width, height = size[0] * scale, size[1] * scale
    left, top = random.uniform(0, photograph.width - width), random.uniform(0, photograph.height - height)
    crop = photograph.resize(size, Image.Resampling.BICUBIC, (left, top, left + width, top + height))
    brightness = random.uniform(0.7, 1.0)
    return crop.point(lambda value: value * brightness)


def _encode_sound(container: OutputContainer, stream: AudioStream, wave: np.ndarray) -> None:
    sound = av.AudioFrame.from_ndarray(wave[None], format="s16", layout="mono")
    sound.sample_rate, sound.pts = stream.rate, 0
    resampler = av.AudioResampler(stream.format, "mono", stream.rate, stream.frame_size or 4096)
    for frame in (*resampler.resample(sound), *resampler.resample(None)):
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


Samples = Callable[[int], Iterator[Sample]]

DATA_SETS: dict[str, tuple[dict[str, ModalityInput], int, Samples | None, int]] = {
    "photographs": ({"image": ImageInput(height=224, width=224)}, 32, _photographs, 1600),
    "clips": (
        {
            "video": VideoInput(frames=32, frames_per_second=16, height=224, width=224, patch=(2, 8, 8)),
            "audio": AudioInput(sample_rate=48_000, samples=61_440, segment=128),
        },
        8,
        _clips,
        160,
    ),
    "recordings": ({"audio": AudioInput(sample_rate=16_000, samples=61_440)}, 32, _recordings, 320),
    "tiny": ({"image": ImageInput(height=28, width=28, channels=1)}, 32, None, 8000),
}
"""Inputs, batch size, generator of samples (None for the Fashion-MNIST images in the repository) and their number, by
name."""
