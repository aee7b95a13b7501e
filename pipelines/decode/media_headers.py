"""Headers of media files whose writers could not go back to fill in sizes and lengths, as when they write to a pipe.

Such a header holds a placeholder, or nothing from which FFmpeg could tell how long the file is; then FFmpeg estimates
the length from the first bit rate that it sees. Neither is a claim that a file could break. The rest of this package
calls a file truncated only where a true claim is broken.
"""

from av.container import InputContainer

_PLACEHOLDER = 0x7FFF_0000
"""Size of a WAV file from which on it is a placeholder, if the file is smaller: writers leave 0x7FFFF000, 0x7FFFFFFF,
0x80000000, 0xFFFFFFFF, or these less the header. A field of a sample has less than 2 GiB by the default limit."""

_AFTER_THE_SAMPLES = (b"LIST", b"id3 ", b"ID3 ", b"bext", b"cue ", b"smpl")
"""Names of the parts that may follow the samples of a WAV file: a size of 0 before them is true."""

_MP3_LENGTH_TAGS = (b"Xing", b"Info", b"VBRI")
_MP3_TAG_RANGE = 4096
"""Bytes of the first frame of an MP3 file, and some before it, in which a tag with the file's length can be."""

_JOINED_SHARE = 16
"""Part of the size in an MP3 file's tag by which the file must be larger for FFmpeg to take it for a joined one. Less
is what follows the sound, such as its title."""

_AVI_PLACEHOLDER_FRAMES = 1 << 30
"""Number of frames that FFmpeg writes into the header of an AVI file until it knows better."""


def with_true_wav_size(data: bytes) -> bytes:
    """Return a WAV file with the size of its samples in place of a placeholder; other files as they are.

    Args:
        data: The whole file.
    """
    if data[8:12] != b"WAVE" or data[:4] not in (b"RIFF", b"RF64"):
        return data
    position, alignment, long_size = 12, 1, None
    while position + 8 <= len(data):
        name, size = (
            data[position : position + 4],
            int.from_bytes(data[position + 4 : position + 8], "little"),
        )
        content = position + 8
        if name == b"ds64":  # RF64 has the size in 64 bits here, and all ones below
            long_size = content + 8
        if name == b"fmt " and size >= 14:
            alignment = int.from_bytes(data[content + 12 : content + 14], "little") or 1
        if name == b"data":
            return _with_size(data, position + 4, long_size, alignment)
        position = content + size + size % 2
    return data


def _with_size(data: bytes, field: int, long_field: int | None, alignment: int) -> bytes:
    """Write the true size into the header of the samples, which is at `field`, or in RF64 at `long_field`."""
    width = 4 if long_field is None else 8
    place = field if long_field is None else long_field
    stated, content = int.from_bytes(data[place : place + width], "little"), field + 4
    found = len(data) - content
    is_empty = found == 0 or data[content : content + 4] in _AFTER_THE_SAMPLES
    if (stated == 0 and is_empty) or 0 < stated < _PLACEHOLDER or 0 < stated <= found:
        return data
    true = (found - found % alignment).to_bytes(width, "little")
    return data[:place] + true + data[place + width :]


def length_is_estimated(container: InputContainer, data: bytes) -> bool:
    """Return whether the length that FFmpeg tells is its estimate or a placeholder, not a claim of the file.

    Args:
        container: The opened file.
        data: The whole file.
    """
    match container.format.name:
        case "aac":
            return True
        case "mp3":
            return _mp3_length_is_estimated(data)
        case "avi":
            return any(track.frames in (0, _AVI_PLACEHOLDER_FRAMES) for track in container.streams.video)
        case _:
            return False


def _mp3_length_is_estimated(data: bytes) -> bool:
    """Return whether an MP3 file has no tag with its length, or one of a shorter file, to which others were joined."""
    start = _end_of_id3(data)
    first_frame = data[start : start + _MP3_TAG_RANGE]
    places = [place for tag in _MP3_LENGTH_TAGS if (place := first_frame.find(tag)) >= 0]
    if not places:
        return True
    tag = first_frame[min(places) :]
    if tag[:4] == b"VBRI":
        return False
    # Flags, the number of frames if bit 0 is set, and the number of bytes if bit 1 is.
    flags = int.from_bytes(tag[4:8], "big")
    size = int.from_bytes(tag[4 * (2 + flags % 2) :][:4], "big") if flags & 2 else 0
    # FFmpeg does not believe the tag either then (mp3dec.c, "invalid concatenated file detected").
    return size > 0 and len(data) - start - size > size // _JOINED_SHARE


def _end_of_id3(data: bytes) -> int:
    """Return where an ID3v2 tag ends (id3.org, ID3v2.4.0, section 3.1); it may hold a large picture."""
    if data[:3] != b"ID3" or len(data) < 10:
        return 0
    size = 0
    for byte in data[6:10]:
        size = size << 7 | byte & 0x7F
    return 10 + size
