"""Images to convert, and readers of the converted shards."""

from pathlib import Path
from typing import Any

import webdataset
from PIL import Image

from perceiver_dist.modalities import ImageInput
from pipelines.convert import Conversion, write_conversion
from pipelines.decode import decode_image
from pipelines.shards.source import SourceConfig


def picture(path: Path, shade: int = 0) -> Path:
    """Write a small image of one shade."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("L", (8, 8), shade).save(path, "PNG")
    return path


def write_tree(folder: Path, *paths: str) -> Path:
    """Write images into a folder tree, the first of shade 0, the second of 1, ..."""
    for number, path in enumerate(paths):
        picture(folder / path, number)
    return folder


def written(conversion: Conversion) -> SourceConfig:
    """Write all shards of a conversion, and return its source."""
    write_conversion(conversion, lambda _done, _of: None)
    return conversion.source


def read_shards(pattern: str) -> list[dict[str, Any]]:
    """Read all samples of shards with webdataset, whose format they have."""
    return list(webdataset.WebDataset(pattern, shardshuffle=False)) if pattern else []


def shades(pattern: str) -> dict[int, str]:
    """Return the content of cls by the shade of the image."""
    return {
        int(decode_image(each["png"], ImageInput())[0, 0, 0]): each["cls"].decode()
        for each in read_shards(pattern)
    }
