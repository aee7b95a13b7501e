"""Fields of samples: the modality that a file name's extension stands for."""

from pathlib import Path

FIELD_MODALITY: dict[str, str] = {
    **dict.fromkeys(("jpg", "jpeg", "jfif", "png", "webp", "avif", "tif", "tiff", "gif", "bmp"), "image"),
    **dict.fromkeys(("flac", "wav", "mp3", "ogg", "oga", "opus", "m4a", "aac"), "audio"),
    **dict.fromkeys(("mp4", "m4v", "webm", "mkv", "avi", "mov", "mpg", "mpeg", "ts", "3gp"), "video"),
    **dict.fromkeys(("off", "ply", "obj", "npy"), "points"),
}
"""Modality by field name. A field name is the file extension inside the shard."""


def field_of(path: Path) -> str:
    """Return the field name of a file in a sample: its extension, in lower case and without the dot.

    Args:
        path: The file, which need not exist.
    """
    return path.suffix.removeprefix(".").lower()
