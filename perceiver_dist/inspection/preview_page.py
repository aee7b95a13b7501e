"""HTML page of a preview: self-contained, with images and audio as data: URLs.

The tags and the style are in `templates/preview.html`, whose autoescaping covers all text from shards.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from perceiver_dist.display.html_page import render_page
from perceiver_dist.inspection.media_drawing import (
    MAX_EXACT_SIDE,
    audio_url,
    cloud_url,
    image_url,
    spectrogram_url,
    waveform,
)
from perceiver_dist.inspection.preview_cards import Card, Medium
from pipelines.inspection.media_preview import shown_rate
from pipelines.shards.shard_index import SourceIndex


@dataclass(frozen=True)
class _View:
    """One array of a medium, or the problem of a bad medium, as the template shows it.

    Attributes:
        problem: Why the medium or sample is bad; "" if it is good.
        modality: Modality of the array: of a video, also audio.
        label: Description for screen readers.
        images: data: URLs: the image, the frames, the spectrogram or the cloud.
        is_small: Whether pixels are shown enlarged and sharp.
        waveform: SVG path of audio.
        audio: data: URL of audio.
    """

    problem: str = ""
    modality: str = ""
    label: str = ""
    images: tuple[str, ...] = ()
    is_small: bool = False
    waveform: str = ""
    audio: str = ""


@dataclass(frozen=True)
class _CardView:
    """One card, as the template shows it.

    Attributes:
        is_bad: Whether the sample is bad.
        views: The media, or the problems in place of them.
        classes: Class names, separated by commas.
        problems: Problems shown below the media.
        facts: A line per medium.
        key: Key of the sample.
        shard: Path or URI of its shard.
        shard_name: File name of its shard.
    """

    is_bad: bool
    views: list[_View]
    classes: str
    problems: list[str]
    facts: list[str]
    key: str
    shard: str
    shard_name: str


def preview_page(title: str, index: SourceIndex, cards: Sequence[Card], seed: int) -> str:
    """Render the page.

    Args:
        title: Title of the page.
        index: The shards' index.
        cards: The samples.
        seed: Seed with which they were drawn.

    Returns:
        HTML that needs no other file.
    """
    views = [_card_view(card) for card in cards]
    bad = sum(view.is_bad for view in views)
    counts = (
        f"samples: {len(cards):,} of {index.samples:,} · shards: {len(index.shards):,} · seed: {seed}"
        + (f" · bad: {bad:,}" if bad else "")
    )
    return render_page("inspection/templates/preview.html", title=title, counts=counts, cards=views)


def _card_view(card: Card) -> _CardView:
    problems = [_View(problem=problem) for problem in card.problems]
    return _CardView(
        is_bad=bool(card.problems) or any(medium.problem for medium in card.media),
        views=[view for medium in card.media for view in _views(medium, card.key)]
        if card.media
        else problems,
        classes=", ".join(card.classes),
        problems=card.problems if card.media else [],
        facts=[_facts(medium) for medium in card.media if medium.measures],
        key=card.key,
        shard=card.shard,
        shard_name=card.shard.rpartition("/")[2],
    )


def _views(medium: Medium, key: str) -> list[_View]:
    if medium.problem:
        return [_View(problem=medium.problem)]
    label = f"{medium.field} of {key}"
    return [_view(modality, array, medium, label) for modality, array in medium.arrays.items()]


def _view(modality: str, array: np.ndarray, medium: Medium, label: str) -> _View:
    view = _View(modality=modality, label=label)
    match modality:
        case "image":
            return replace(view, images=(image_url(array),), is_small=_is_small(array))
        case "video":
            return replace(view, images=tuple(map(image_url, array)), is_small=_is_small(array[0]))
        case "points":
            return replace(view, images=(cloud_url(array),))
    audio = audio_url(array, shown_rate(medium.measures["sound samples per second"]))
    return replace(view, images=(spectrogram_url(array),), waveform=waveform(array), audio=audio)


def _is_small(pixels: np.ndarray) -> bool:
    return max(pixels.shape[:2]) <= MAX_EXACT_SIDE


def _facts(medium: Medium) -> str:
    """Return the values from the header, in parts that are not broken over lines."""
    measures = medium.measures
    parts = [medium.field]
    if "width" in measures:
        parts.append(f"{measures['width']:.0f} x {measures['height']:.0f}")
    if "frames per second" in measures:
        parts.append(f"{measures['frames per second']:.4g} fps")
    if "seconds" in measures:
        parts.append(f"{measures['seconds']:.2f} s")
    if "sound samples per second" in measures:
        parts.append(f"{measures['sound samples per second'] / 1000:g} kHz")
    if measures.get("channels", 1) > 1:
        parts.append(f"{measures['channels']:.0f} channels")
    parts += [f"{measures[name]:,.0f} {name}" for name in ("vertices", "triangles") if measures.get(name)]
    return " · ".join(part.replace(" ", "\N{NO-BREAK SPACE}") for part in parts)
