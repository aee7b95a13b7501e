"""Synthetic audio-visual clips ("sights and sounds") whose label needs frames and audio; neither alone determines it.

A colored shape moves across, moves up or down, or stays and pulses (seen: 0, 1, 2). A tone is low, middle or high
(heard: 0, 1, 2). The label is 3 * seen + heard, so the accuracy of a model shows whether it ignores one of them.

The motion cannot be inferred from one frame. The shape moves on a torus (it reenters on the opposite side) from a
uniformly drawn position, so at any instant its position is uniform, whether it moves or not. The size of a pulsing
shape is a triangle wave of random phase, which at any instant is uniform over the range from which the constant size
of the others is drawn. Color, form and background have the same distribution for all. So single frames have the same
distribution in all three classes, and only the change between frames distinguishes them.

A clip is a pure function of (seed, number), byte for byte with the same build of FFmpeg. Training clips are numbered
from 0 and evaluation clips from FIRST_EVALUATION_CLIP. So no clip is in both, and the evaluation set does not depend on
the number of training clips.
"""

from collections.abc import Callable, Iterable
from io import BytesIO
from itertools import starmap
from pathlib import Path
from typing import Any

import av
import numpy as np

from pipelines.shards.shard_writer import Sample, write_shard

SEEN = ("across", "up_down", "pulsing")
HEARD = ("low", "middle", "high")
CLASS_NAMES = tuple(f"{seen}_{heard}" for seen in SEEN for heard in HEARD)

SEEN_ONLY_CEILING = 1 / len(HEARD)
"""Best expected accuracy from frames alone: they determine `seen`, and nothing of which of three tones is heard."""

HEARD_ONLY_CEILING = 1 / len(SEEN)
"""Best expected accuracy from audio alone, for the same reason."""

TOGETHER_CEILING = 1.0
"""Best accuracy from both: the label is a function of `seen` and `heard`, and both can be inferred with certainty."""

FIRST_EVALUATION_CLIP = 1_000_000_000
"""More than any number of training clips."""
SAMPLES_PER_SHARD = 300
"""Divides the default numbers of clips into 8 + 2 shards, which several processes render in parallel."""

SECONDS = 1.125
"""A little longer than the default window, 1.024 s of audio, so that its position varies."""
FRAMES_PER_SECOND = 16
SIDE = 32
SAMPLE_RATE = 8000
"""Small clips, so that rendering and training are fast on CPUs. 8 kHz holds the highest tone and one overtone."""
PITCHES = (220.0, 550.0, 1375.0)
"""Hz of low, middle and high. Each is detuned by up to a quarter octave, which leaves 0.8 octaves between them."""

X264_OPTIONS = {
    "preset": "veryfast",
    "crf": "24",
    "threads": "1",
    # With mbtree on, about one clip in ten differed when encoded twice: at this size, x264's vector code for it reads
    # beyond the frame. cpu-independent gives the same bytes on other processors too.
    "x264-params": "cpu-independent=1:mbtree=0",
}


def write_synthetic_clips(
    directory: Path,
    train: int = 2400,
    evaluation: int = 450,
    seed: int = 0,
    starmap: Callable[..., Iterable[Any]] = starmap,
) -> None:
    """Render all clips and write them to train-NNNNNN.tar and eval-NNNNNN.tar, 300 to a shard.

    Args:
        directory: Folder of the shards; created if missing.
        train: Number of training clips.
        evaluation: Number of evaluation clips; balanced if it is a multiple of 9.
        seed: Seed of the clips.
        starmap: Calls a function with each of many tuples of arguments; `multiprocessing.Pool.starmap` renders shards
            in parallel.
    """
    directory.mkdir(parents=True, exist_ok=True)
    for _ in starmap(write_clips, plan_shards(directory, train, evaluation, seed)):
        pass


def plan_shards(directory: Path, train: int, evaluation: int, seed: int) -> list[tuple[Path, int, int, int]]:
    """Return the arguments of `write_clips` for every shard.

    Args:
        directory: Folder of the shards.
        train: Number of training clips.
        evaluation: Number of evaluation clips.
        seed: Seed of the clips.

    Returns:
        (path, first, count, seed) of each shard.
    """
    return [
        (directory / f"{name}-{shard:06d}.tar", first + start, min(SAMPLES_PER_SHARD, total - start), seed)
        for name, first, total in (("train", 0, train), ("eval", FIRST_EVALUATION_CLIP, evaluation))
        for shard, start in enumerate(range(0, total, SAMPLES_PER_SHARD))
    ]


def write_clips(path: Path, first: int, count: int, seed: int) -> None:
    """Render consecutive clips and write them as one shard. Labels alternate, so every shard is balanced.

    Args:
        path: Path of the shard; its folder must exist.
        first: Number of the first clip.
        count: Number of clips.
        seed: Seed of the clips.
    """
    write_shard((_sample(number, seed) for number in range(first, first + count)), path)


def _sample(number: int, seed: int) -> Sample:
    label = number % len(CLASS_NAMES)
    clip = render_clip(label, np.random.default_rng((seed, number)))
    return {"__key__": f"{number:010d}", "mp4": clip, "cls": label}


def render_clip(label: int, rng: np.random.Generator) -> bytes:
    """Render and encode a clip.

    Args:
        label: 3 * seen + heard.
        rng: Draws everything that the label does not determine.

    Returns:
        An MP4 file, H.264 at 16 frames per second and AAC at 8 kHz, 1.125 s long, 32 x 32 pixels.
    """
    seen, heard = divmod(label, len(HEARD))
    return _encode(draw_frames(seen, rng), draw_sound(heard, rng))


def draw_frames(seen: int, rng: np.random.Generator) -> np.ndarray:
    """Render the frames of a clip, as described at the top of this file.

    Args:
        seen: 0 moves across, 1 moves up or down, 2 stays and pulses.
        rng: Draws position, speed, size, form, color and background.

    Returns:
        uint8 (frames, 32, 32, 3).
    """
    time = np.arange(round(SECONDS * FRAMES_PER_SECOND)) / FRAMES_PER_SECOND
    speed = rng.uniform(0.7, 1.1) * SIDE * rng.choice((-1, 1))  # pixels per second
    center = rng.uniform(0, SIDE, 2)[:, None] + np.outer((seen == 1, seen == 0), speed * time)
    phase = rng.uniform(0, 1)
    pulse = np.abs((phase + rng.uniform(1.2, 1.8) * time * (seen == 2)) % 1 * 2 - 1)
    radius = 3 + 4 * pulse
    pixels = np.arange(SIDE)
    # Distance from the center on the torus, in rows and in columns: (2, frames, SIDE).
    away = np.abs((pixels - center[:, :, None] + SIDE / 2) % SIDE - SIDE / 2)
    rows, columns = away[0][:, :, None], away[1][:, None, :]
    roundness = rng.choice((1.0, 2.0, 8.0))  # diamond, disc, nearly a square
    distance = (rows**roundness + columns**roundness) ** (1 / roundness)
    cover = np.clip(radius[:, None, None] - distance + 0.5, 0, 1)[..., None]
    color = rng.uniform(0.2, 1.0, 3)
    color[rng.integers(3)] = 1.0
    background = rng.uniform(0, 0.3, (SIDE, SIDE, 3)) * rng.uniform(0.3, 1.0)
    return np.round(255 * (cover * color + (1 - cover) * background)).astype(np.uint8)


def draw_sound(heard: int, rng: np.random.Generator) -> np.ndarray:
    """Synthesize the audio of a clip: a tone with harmonics and a random onset, in noise.

    Args:
        heard: 0 low, 1 middle, 2 high.
        rng: Draws pitch within the class, harmonics, loudness, onset and noise.

    Returns:
        int16 (samples,) at 8 kHz.
    """
    time = np.arange(round(SECONDS * SAMPLE_RATE)) / SAMPLE_RATE
    pitch = PITCHES[heard] * 2 ** rng.uniform(-0.25, 0.25)
    tone = np.zeros_like(time)
    for harmonic, strength in enumerate((1.0, *rng.uniform(0, 0.4, 3)), start=1):
        # Below the Nyquist frequency, with a margin for the resampling and encoding filters.
        if harmonic * pitch < 0.45 * SAMPLE_RATE:
            tone += strength / harmonic * np.sin(2 * np.pi * (harmonic * pitch * time + rng.uniform()))
    since_onset = time - rng.uniform(0, 0.2)
    envelope = np.clip(since_onset / 0.01, 0, 1) * np.exp(-rng.uniform(0, 1) * np.maximum(since_onset, 0))
    loudness = rng.uniform(0.2, 0.6)
    noise = rng.uniform(0.005, 0.03) * rng.standard_normal(len(time))
    return np.round(32767 * np.clip(loudness * envelope * tone + noise, -1, 1)).astype(np.int16)


def _encode(frames: np.ndarray, sound: np.ndarray) -> bytes:
    """Encode uint8 (frames, 32, 32, 3) and int16 (samples,) to an MP4 file, deterministically: in one thread."""
    target = BytesIO()
    with av.open(target, "w", format="mp4") as container:
        video = container.add_stream("libx264", FRAMES_PER_SECOND, X264_OPTIONS)
        video.width, video.height, video.pix_fmt = SIDE, SIDE, "yuv420p"
        audio = container.add_stream("aac", SAMPLE_RATE, layout="mono", bit_rate=24000)
        for number, picture in enumerate(frames):
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.pts = number
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        samples = av.AudioFrame.from_ndarray(sound[None], format="s16", layout="mono")
        samples.sample_rate, samples.pts = SAMPLE_RATE, 0
        resampler = av.AudioResampler("fltp", "mono", SAMPLE_RATE, audio.frame_size)
        for piece in [*resampler.resample(samples), *resampler.resample(None)]:
            container.mux(audio.encode(piece))
        container.mux(audio.encode(None))
    return target.getvalue()
