"""Text files of users, such as tables and lists: their encoding and their form as comma-separated values."""

import codecs
import csv
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

from perceiver_dist.errors import UserError

_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # before UTF-16: its mark begins with that of UTF-16
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def read_text_file(path: Path, what: str, encoding: str | None = None) -> str:
    """Return the text of a file: in the given encoding, in that of its byte order mark, or in UTF-8.

    Args:
        path: The file.
        what: Its name in errors, such as "table labels.csv".
        encoding: Name of an encoding that Python knows; None to find it.

    Raises:
        UserError: The file is missing or unreadable, or its bytes are not text in that encoding.
    """
    if encoding is not None:
        try:
            codecs.lookup(encoding)
        except LookupError as error:
            raise UserError(
                f"--encoding is {encoding!r}, must be one such as utf-8, cp1252 or utf-16"
            ) from error
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise UserError(f"{what}: no such file") from error
    except OSError as error:
        raise UserError(f"{what}: cannot be read ({error.strerror})") from error
    marked = next((name for mark, name in _BYTE_ORDER_MARKS.items() if data.startswith(mark)), "utf-8")
    used = encoding or marked
    if used == "utf-8" and b"\0" in data:
        raise UserError(
            f"{what}: holds zero bytes, expected text in UTF-8; save it in UTF-8, or name its encoding with "
            "--encoding, such as utf-16-le"
        )
    try:
        return data.decode(used)
    except UnicodeDecodeError as error:
        raise UserError(
            f"{what}: is not text in {used} (byte {error.object[error.start]:#04x} at position {error.start:,}); "
            "save it in UTF-8, or name its encoding with --encoding, such as cp1252"
        ) from error


def csv_rows(text: str, what: str, skip_spaces: bool = False) -> Iterator[tuple[int, list[str]]]:
    """Yield the number of the last line, from 1, and the entries of every row of comma-separated values.

    Empty lines are left out.

    Args:
        text: The text.
        what: Name of the file in errors.
        skip_spaces: Whether to ignore spaces after a comma.

    Raises:
        UserError: A row cannot be parsed, such as one that a quotation mark opens but none closes.
    """
    reader = csv.reader(StringIO(text, newline=""), skipinitialspace=skip_spaces)
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise UserError(
                f"{what}, line {reader.line_num}: cannot be parsed ({error}); correct it"
            ) from error
        if row is None:
            return
        if row:
            yield reader.line_num, row
