"""The page of a preview: HTML that holds its own style, pictures and sounds, and escapes all text from shards."""

from collections.abc import Sequence
from html import escape

import numpy as np

from perceiver_dist.inspection.media_drawing import (
    cloud_address,
    picture_address,
    sound_address,
    spectrogram_address,
    waveform,
)
from perceiver_dist.inspection.preview_cards import Card, Medium
from pipelines.inspection.media_preview import shown_rate
from pipelines.shards.shard_index import SourceIndex

_STYLE = """
:root { color-scheme: light dark; --text: #1c2128; --faint: #5c6570; --page: #ffffff; --card: #f6f7f9;
  --line: #d8dde3; --stage: #e9ecf0; --accent: #2f6fdb; --bad: #b3261e; --bad-card: #fdf0ee; }
@media (prefers-color-scheme: dark) { :root { --text: #e4e8ed; --faint: #9aa4b0; --page: #14181d; --card: #1b2027;
  --line: #323a44; --stage: #252c35; --accent: #6ea8ff; --bad: #ff9a8f; --bad-card: #2d1d1d; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1760px; padding: 28px 24px 56px; background: var(--page); color: var(--text);
  font: 15px/1.45 system-ui, "Segoe UI", Roboto, sans-serif; }
h1 { font-size: 22px; margin: 0; overflow-wrap: anywhere; }
header p { color: var(--faint); margin: 4px 0 22px; }
main { display: grid; gap: 18px; grid-template-columns: repeat(auto-fill, minmax(min(280px, 100%), 1fr)); }
article { display: flex; flex-direction: column; border: 1px solid var(--line); border-radius: 10px;
  background: var(--card); overflow: hidden; }
article.bad { border-color: var(--bad); background: var(--bad-card); }
.stage { display: flex; flex: 1; flex-direction: column; justify-content: center; gap: 6px; padding: 10px;
  background: var(--stage); }
.stage > img { display: block; max-width: 100%; margin: 0 auto; border-radius: 4px; }
.picture { height: 180px; object-fit: contain; } .cloud { width: 100%; background: #10151b; }
img.small { image-rendering: pixelated; }
.strip { display: grid; grid-template-columns: repeat(3, 1fr); gap: 3px; }
.strip img { display: block; width: 100%; border-radius: 2px; }
.waveform { display: block; width: 100%; height: 44px; fill: var(--accent); }
.spectrogram { width: 100%; height: 76px; } audio { width: 100%; height: 32px; }
.reason { color: var(--bad); margin: 0; padding: 18px 8px; text-align: center; overflow-wrap: anywhere; }
.text { padding: 10px 14px 12px; } .text p { margin: 0; overflow-wrap: anywhere; }
.classes { font-weight: 600; font-size: 16px; } .problem { color: var(--bad); }
.facts { color: var(--faint); font-size: 13px; }
.place { font: 12px/1.5 ui-monospace, "SF Mono", Consolas, monospace; color: var(--faint); margin-top: 6px !important; }
.place b { font-weight: 500; color: var(--text); }
"""
_SMALL = 96
"""Pixels up to which a picture is shown enlarged with its pixels sharp."""


def preview_page(title: str, index: SourceIndex, cards: Sequence[Card], seed: int) -> str:
    """Build the page.

    Args:
        title: What is shown.
        index: The shards' index.
        cards: The samples.
        seed: What they were drawn with.

    Returns:
        HTML that needs no other file.
    """
    bad = sum(_is_bad(card) for card in cards)
    about = f"samples: {len(cards):,} of {index.samples:,} · shards: {len(index.shards):,} · seed: {seed}" + (
        f" · cannot be used: {bad:,}" if bad else ""
    )
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # Nothing but what is in the page, whatever a name in a shard may be.
        '<meta http-equiv="Content-Security-Policy" content="default-src \'none\'; img-src data:; media-src data:; '
        "style-src 'unsafe-inline'\">\n"
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"<header><h1>{escape(title)}</h1><p>{escape(about)}</p></header>\n<main>\n"
        + "\n".join(map(_article, cards))
        + "\n</main>\n</body>\n</html>\n"
    )


def _is_bad(card: Card) -> bool:
    return bool(card.problems) or any(medium.problem for medium in card.media)


def _article(card: Card) -> str:
    stage = "".join(_medium(medium, card.key) for medium in card.media)
    if not card.media:
        stage = "".join(f'<p class="reason">{escape(problem)}</p>' for problem in card.problems)
    problems = card.problems if card.media else []
    lines = [
        f'<p class="classes">{escape(", ".join(card.classes))}</p>' if card.classes else "",
        *(f'<p class="problem">{escape(problem)}</p>' for problem in problems),
        *(f'<p class="facts">{escape(_facts(medium))}</p>' for medium in card.media if medium.measures),
        f'<p class="place"><b>{escape(card.key)}</b><br>{escape(card.shard.rpartition("/")[2])}</p>',
    ]
    kind = ' class="bad"' if _is_bad(card) else ""
    return (
        f'<article{kind}><div class="stage">{stage}</div>'
        f'<div class="text" title="{escape(card.shard)}">{"".join(lines)}</div></article>'
    )


def _medium(medium: Medium, key: str) -> str:
    if medium.problem:
        return f'<p class="reason">{escape(medium.problem)}</p>'
    about = escape(f"{medium.field} of {key}")
    return "".join(_shown(modality, array, medium, about) for modality, array in medium.arrays.items())


def _shown(modality: str, array: np.ndarray, medium: Medium, about: str) -> str:
    match modality:
        case "image":
            small = " small" if max(array.shape[:2]) <= _SMALL else ""
            return f'<img class="picture{small}" src="{picture_address(array)}" alt="{about}">'
        case "video":
            small = ' class="small"' if max(array.shape[1:3]) <= _SMALL else ""
            frames = "".join(f'<img{small} src="{picture_address(frame)}" alt="">' for frame in array)
            return f'<div class="strip" role="img" aria-label="{about}">{frames}</div>'
        case "points":
            return f'<img class="cloud" src="{cloud_address(array)}" alt="{about}">'
    rate = shown_rate(medium.measures["sound samples per second"])
    return (
        '<svg class="waveform" viewBox="0 -1 300 2" preserveAspectRatio="none" aria-hidden="true">'
        f'<path d="{waveform(array)}"/></svg>'
        f'<img class="spectrogram" src="{spectrogram_address(array)}" alt="spectrogram of {about}">'
        f'<audio controls preload="metadata" src="{sound_address(array, rate)}"></audio>'
    )


def _facts(medium: Medium) -> str:
    """What the header says, in parts that are not broken over lines."""
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
