"""Tests of the preview page: it is self-contained, shows every medium, and escapes everything from shards."""

import base64
import importlib
import re
import wave
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from faulty_shards import EVERYTHING, FAULTS, GOOD, picture, write_samples
from PIL import Image
from tar_files import index_of, write_tar

from perceiver_dist.errors import UserError
from perceiver_dist.inspection.class_names import ClassNames, find_class_names
from perceiver_dist.inspection.media_drawing import (
    cloud_url,
    image_url,
    spectrogram_url,
    waveform,
)
from perceiver_dist.inspection.preview_cards import Card, draw_cards
from perceiver_dist.inspection.preview_page import preview_page
from pipelines.inspection.sample_check import LabelRules

RULES = LabelRules(num_classes=3)
NAMES = ["cat", "dog & fox", "<i>bird</i>"]


class Elements(HTMLParser):
    """All elements of a page with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def content(url: str | None) -> BytesIO:
    """Return the content of a data: URL."""
    assert url is not None
    return BytesIO(base64.b64decode(url.partition("base64,")[2]))


def cards_of(shard: str, names: list[str] = NAMES, count: int = 100) -> list[Card]:
    """Return cards in the order of their keys."""
    return sorted(draw_cards(index_of(shard), RULES, names, count, seed=0), key=lambda card: int(card.key))


def page_of(shard: str) -> Elements:
    return Elements(preview_page("pets", index_of(shard), cards_of(shard), seed=0))


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_samples(tmp_path_factory.mktemp("shards") / "x.tar", EVERYTHING)


def test_media_are_decoded_in_their_own_shape(everything: str) -> None:
    shapes = [
        {name: array.shape for medium in card.media for name, array in medium.arrays.items()}
        for card in cards_of(everything)[: len(GOOD)]
    ]
    assert shapes == [
        {"image": (8, 12, 3)},
        {"image": (20, 40, 3), "audio": (24000,)},
        {"video": (6, 32, 32, 3), "audio": (9000,)},
        {"points": (3000, 3)},
    ]


def test_every_fault_is_shown_on_its_card(everything: str) -> None:
    for card, (_, reason) in zip(cards_of(everything)[len(GOOD) :], FAULTS, strict=True):
        shown = card.problems + [medium.problem for medium in card.media if medium.problem]
        # The preview decodes the middle of truncated audio, which is complete; `lint` decodes the end.
        assert len(shown) == (not reason.startswith("audio track 0 is truncated"))
        assert all(text.startswith(reason) for text in shown)


def test_the_page_is_self_contained_and_has_a_card_per_sample(everything: str) -> None:
    page = page_of(everything)
    article_classes = [article.get("class") for article in page.all("article")]
    assert (len(article_classes), article_classes.count("bad")) == (10, 5)
    assert len(page.all("img")) == 5 + 6 + 1 + 3  # Images, frames, a cloud and spectrograms.
    for image in page.all("img"):
        Image.open(content(image["src"])).load()
    for audio in page.all("audio"):
        with wave.open(content(audio["src"])) as file:
            assert (file.getnchannels(), file.getframerate()) == (1, 8000)
            assert file.getnframes() in (24_000, 9_000, 40_000)
    used = {name for _, attributes in page.elements for name in attributes} & {"href", "srcset", "onerror"}
    assert used == set()
    assert not page.all("script")


def test_text_from_shards_is_escaped(tmp_path: Path) -> None:
    evil = "<img src=x onerror=alert(1)>"
    shard = write_tar(tmp_path / "x.tar", [(f"{evil}.png", picture()), (f"{evil}.cls", b"2")])
    cards = draw_cards(index_of(shard), RULES, NAMES, 5, seed=0)
    page = preview_page("<script>", index_of(shard), cards, seed=0)
    assert evil not in page
    assert "<script" not in page
    assert evil in Elements(page).text
    assert NAMES[2] in Elements(page).text


def test_a_small_image_is_kept_exactly() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (9, 7, 3), np.uint8)
    assert np.array_equal(np.asarray(Image.open(content(image_url(pixels)))), pixels)


def test_a_tone_is_at_its_frequency_in_the_spectrogram() -> None:
    tone = (9000 * np.sin(2 * np.pi * 1000 * np.arange(8000) / 8000)).astype(np.int16)
    shades = np.asarray(Image.open(content(spectrogram_url(tone))).convert("L")).astype(float)
    row = shades.mean(axis=1).argmax()
    assert abs(1 - row / (len(shades) - 1) - 1000 / 4000) < 0.02


@pytest.mark.parametrize("samples", [1, 2, 511, 513, 40_000])
def test_audio_of_any_length_is_drawn(samples: int) -> None:
    sound = np.full(samples, 16384, np.int16)
    points = [float(y) for y in re.findall(r" (-?\d\.\d+)", waveform(sound))]
    assert (min(points), max(points)) == (-0.5, 0.01)
    Image.open(content(spectrogram_url(sound))).load()


def test_one_of_the_two_views_of_a_cloud_is_upright() -> None:
    column = np.stack([np.zeros(200), np.zeros(200), np.linspace(-1, 1, 200)], axis=1).astype(np.float32)
    drawn = np.asarray(Image.open(content(cloud_url(column))))[..., 3] > 0
    _, width = drawn.shape
    sides = [np.argwhere(half) for half in (drawn[:, : width // 2], drawn[:, width // 2 :])]
    tall, long = (np.ptp(side, axis=0) for side in sides)
    assert tall[0] > 10 * tall[1]
    assert long[1] > long[0]


def test_preview_writes_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], everything: str
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2])
    job = importlib.import_module("jobs.inspect_data").main
    (tmp_path / "classes.json").write_text('["cat", "dog", "bird"]')
    out = tmp_path / "pages" / "page.html"
    options = [
        "--shards",
        everything,
        "--storage_path",
        str(tmp_path),
        "--classes",
        str(tmp_path / "classes.json"),
    ]
    assert job(["preview", *options, "--out", str(out), "--count", "3"]) == 0
    assert capsys.readouterr().out == f"3 samples: {out}\n"
    assert len(Elements(out.read_text()).all("article")) == 3
    with pytest.raises(UserError, match=r"--num_classes is 4, but .* has 3 names; leave out --num_classes"):
        job(["preview", *options, "--out", str(out), "--num_classes", "4"])


@pytest.mark.parametrize(
    ("text", "error"),
    [
        (None, "no such file"),
        (b"cat", "which is not JSON"),
        (b"\xff", "which cannot be read"),
        (b'{"cat": 0}', "expected a list of two names or more"),
        (b'["cat"]', "expected a list of two names or more"),
        (b"[0, 1]", "expected a list of two names or more"),
    ],
)
def test_invalid_class_names_are_rejected(tmp_path: Path, text: bytes | None, error: str) -> None:
    file = tmp_path / "classes.json"
    if text is not None:
        file.write_bytes(text)
    with pytest.raises(UserError, match=error):
        find_class_names(str(file), [], "cls", None)
    beside = find_class_names(None, [str(tmp_path / "x.tar")], "cls", None)
    assert beside.names == []
    assert (beside.remark == "") == (text is None)


def test_class_names_beside_the_shards_are_those_of_the_field_cls(tmp_path: Path) -> None:
    (tmp_path / "classes.json").write_text('["cat", "dog"]')
    shards = [str(tmp_path / "x.tar"), str(tmp_path / "y.tar")]
    assert find_class_names(None, shards, "cls", None) == ClassNames(["cat", "dog"])
    assert find_class_names(None, shards, "json.breed", None) == ClassNames([])
    assert find_class_names(None, [*shards, str(tmp_path / "other" / "x.tar")], "cls", None) == ClassNames([])
