"""Checkpoint format that loads at any world size and any ZeRO stage, and without DeepSpeed.

A checkpoint is a folder such as `step-00001200`. Each rank writes one file in the safetensors format, and
`manifest.json` confirms that all of them are complete (`perceiver_dist/checkpoint/manifest.py`):

    rank-00000-of-00002-5c1f09ae.safetensors     the spans of fp32 parameters, of the optimizer's moments, and if there
    rank-00001-of-00002-5c1f09ae.safetensors     is one of the weights' moving average, that the rank held; the last
                                                 part of the name is the group of workers
    manifest.json

A tensor in such a file is one span of a flattened parameter or moment. Its name identifies the span:
`exp_avg/4096/head.weight` starts at element 4,096 of the running mean of `head.weight`. Together the files hold every
element exactly once. A rank that loads reads the spans that it needs, whichever rank wrote them.

Why not the known formats: torch.distributed.checkpoint reshards DTensors, but ZeRO holds its partitions as plain flat
tensors. DeepSpeed's checkpoints hold the partitions of one stage, and have to be converted to universal checkpoints
before another stage or world size loads them. Here nothing is converted, nothing is gathered to save, and a model is
read without DeepSpeed.

Resuming is exact: fp32 values are copied bit for bit, and the learning rate, the order of samples and what training
leaves out at random are functions of the number of steps.
"""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from perceiver_dist.checkpoint.manifest import CHUNK, StoredFile, TrainingProgress, read_manifest
from perceiver_dist.errors import UserError
from pipelines.storage.files import join, open_storage, read_all, write_chunks
from pipelines.storage.retry import retried

Chunk = bytes | memoryview
"""A piece of a file that is being written."""

MOMENTS = ("exp_avg", "exp_avg_sq")
"""Names of the running mean of the gradient and of its square."""


WEIGHT = "weight"
PARTS = (WEIGHT, *MOMENTS)
"""State that is stored of every parameter: its values and the optimizer's moments. Files have this order."""

AVERAGE = "average"
"""The moving average of the weights, which a run with `optim.ema_decay` stores after these."""
_SHAPES = "shapes"
_LENGTH_BYTES = 8
"""The safetensors format begins with the length of its header as a 64-bit integer."""
_FLOAT_BYTES = 4


@dataclass(frozen=True)
class Span:
    """Consecutive elements of a flattened tensor.

    Attributes:
        start: Index of the first element.
        numel: Number of elements.
    """

    start: int
    numel: int


@dataclass(frozen=True)
class _Stored:
    """A span in a file.

    Attributes:
        part: One of `PARTS`, or `AVERAGE`.
        name: Name of the parameter.
        span: The elements.
        offset: Start of the span in the file, in bytes.
    """

    part: str
    name: str
    span: Span
    offset: int


def rank_file(rank: int, world_size: int, writer: str) -> str:
    """Return the name of a rank's file in a checkpoint.

    Args:
        rank: The rank.
        world_size: Number of ranks that write the checkpoint.
        writer: Id of the group of workers, so that one that was given up, and comes back, cannot write over the files
            of its successor.
    """
    return f"rank-{rank:05d}-of-{world_size:05d}-{writer}.safetensors"


def file_header(spans: Sequence[tuple[str, str, Span]], shapes: Mapping[str, Sequence[int]]) -> bytes:
    """Return the header of a rank's file.

    Args:
        spans: Part, name and span of the fp32 values that follow the header, in this order.
        shapes: Shape of every parameter of the model.
    """
    header: dict[str, Any] = {"__metadata__": {_SHAPES: json.dumps(shapes)}}
    end = 0
    for part, name, span in spans:
        begin, end = end, end + _FLOAT_BYTES * span.numel
        header[f"{part}/{span.start}/{name}"] = {
            "dtype": "F32",
            "shape": [span.numel],
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)  # aligns the values
    return len(text).to_bytes(_LENGTH_BYTES, "little") + text


def write_rank_file(
    uri: str, header: bytes, values: Tensor, watched: Callable[[Iterable[Chunk]], Iterator[Chunk]] = iter
) -> StoredFile:
    """Write a rank's file. Hashing and writing release the GIL, so that other threads run meanwhile.

    Args:
        uri: Path or URI of the file.
        header: From `file_header`.
        values: (elements,) fp32, the values that the header describes, on the host.
        watched: Passes the chunks on one by one, for whoever watches the progress of a large file.

    Returns:
        The file's entry in the manifest.

    Raises:
        OSError: The storage rejects the write; no partial file is left.
    """
    # A view of the tensor's bytes; nothing is copied.
    content = values.numpy().view(np.uint8).data
    chunks: list[Chunk] = [header]
    chunks += [content[start : start + CHUNK] for start in range(0, len(content), CHUNK)]

    def write() -> str:
        digest = hashlib.sha256()
        write_chunks(uri, watched(_hashed(chunks, digest)))
        return digest.hexdigest()

    sha256 = retried(write, uri, reads=False)
    return StoredFile(uri.rpartition("/")[2], len(header) + len(content), sha256)


class StoredCheckpoint:
    """A checkpoint that is open for reading.

    Args:
        uri: Path or URI of its folder.

    Attributes:
        uri: Path or URI of its folder.
        progress: Progress of the run when it was saved.
        shapes: Shape of every parameter by name.
        has_average: Whether it holds the moving average of the weights.

    Raises:
        UserError: It is not a checkpoint, or its files do not hold every element exactly once.
    """

    def __init__(self, uri: str) -> None:
        manifest = read_manifest(uri)
        self.progress: TrainingProgress = manifest.progress
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.uri = uri
        self._files = [join(uri, file.name) for file in manifest.files]
        try:
            self._stored = [self._read_header(file) for file in self._files]
        except (OSError, ValueError, KeyError) as error:
            raise UserError(
                f"checkpoint {uri}: a file cannot be read ({error}); use another checkpoint"
            ) from error
        self.has_average = any(stored.part == AVERAGE for stored in chain.from_iterable(self._stored))
        self._check_complete()

    @property
    def parts(self) -> tuple[str, ...]:
        """What it holds of every parameter."""
        return (*PARTS, AVERAGE) if self.has_average else PARTS

    def read(self, wanted: Mapping[tuple[str, str], Span]) -> dict[tuple[str, str], Tensor]:
        """Return spans of tensors on the host.

        Each file is read once, from the first needed byte to the last: a request to remote storage costs more than the
        unneeded bytes in between.

        Args:
            wanted: A span by part and name.
        """
        found = {key: torch.empty(span.numel) for key, span in wanted.items()}
        for uri, in_file in zip(self._files, self._stored, strict=True):
            needed = [
                (stored, first, stop)
                for stored in in_file
                if (span := wanted.get((stored.part, stored.name)))
                and (first := max(span.start, stored.span.start))
                < (stop := min(span.start + span.numel, stored.span.start + stored.span.numel))
            ]
            # Of a checkpoint of another world size a rank needs some of the files only.
            if not needed:
                continue
            begin = min(stored.offset for stored, _, _ in needed)
            end = max(stored.offset + _FLOAT_BYTES * stored.span.numel for stored, _, _ in needed)
            content = torch.frombuffer(_read_range(uri, begin, end - begin), dtype=torch.float32)
            for stored, first, stop in needed:
                key = stored.part, stored.name
                source = (stored.offset - begin) // _FLOAT_BYTES - stored.span.start
                target = -wanted[key].start
                found[key][target + first : target + stop] = content[source + first : source + stop]
        return found

    def whole(self, part: str) -> dict[str, Tensor]:
        """Return one part of every parameter by name, unflattened.

        Args:
            part: One of `parts`.
        """
        spans = {(part, name): Span(0, math.prod(shape)) for name, shape in self.shapes.items()}
        return {name: flat.view(self.shapes[name]) for (_, name), flat in self.read(spans).items()}

    def _read_header(self, uri: str) -> list[_Stored]:
        length = int.from_bytes(_read_range(uri, 0, _LENGTH_BYTES), "little")
        header = json.loads(_read_range(uri, _LENGTH_BYTES, length))
        shapes = json.loads(header.pop("__metadata__")[_SHAPES])
        self.shapes = {name: tuple(shape) for name, shape in shapes.items()}
        spans = []
        for key, entry in header.items():
            part, start, name = key.split("/", 2)
            offset = _LENGTH_BYTES + length + entry["data_offsets"][0]
            spans.append(_Stored(part, name, Span(int(start), entry["shape"][0]), offset))
        return spans

    def _check_complete(self) -> None:
        spans: dict[tuple[str, str], list[Span]] = {}
        for stored in chain.from_iterable(self._stored):
            spans.setdefault((stored.part, stored.name), []).append(stored.span)
        # The headers suffice for this; `find_damage` checks the values themselves.
        for part in self.parts:
            for name, shape in self.shapes.items():
                fault = first_fault(spans.get((part, name), []), math.prod(shape))
                if fault:
                    raise UserError(
                        f"checkpoint {self.uri}: its files hold {fault} of '{name}' ({part}); use another checkpoint"
                    )


def first_fault(spans: Iterable[Span], numel: int) -> str:
    """Describe the first missing or repeated element of a tensor; return "" if every element is stored once.

    Args:
        spans: The stored spans, in any order.
        numel: Elements of the tensor.
    """
    reached = 0
    for span in sorted(spans, key=lambda span: span.start):
        if span.start < reached:
            return f"element {span.start:,} twice"
        if span.start > reached:
            break
        reached += span.numel
    if reached > numel:
        return f"{reached:,} elements instead of {numel:,}"
    return f"no element {reached:,}" if reached < numel else ""


def read_weights(checkpoint: str) -> dict[str, Tensor]:
    """Return a checkpoint's fp32 weights by name on the host, as a model's `load_state_dict` takes them.

    They are the weights' moving average, if the checkpoint holds it: those that evaluations of the run are of.

    Args:
        checkpoint: Path or URI of its folder.

    Raises:
        UserError: It is not a checkpoint, or an incomplete one.
    """
    stored = StoredCheckpoint(checkpoint)
    return stored.whole(AVERAGE if stored.has_average else WEIGHT)


def load_weights(model: nn.Module, checkpoint: StoredCheckpoint) -> None:
    """Load the weights with which a run trains on into a model, before an engine is built around it.

    Args:
        model: A Perceiver of the same configuration.
        checkpoint: The checkpoint.

    Raises:
        UserError: The parameters of the checkpoint and the model differ.
    """
    expected = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    found = checkpoint.shapes
    # Compared before `load_state_dict`, whose message lists every parameter on many lines.
    if expected != found:
        name, shape = sorted(set(found.items()) ^ set(expected.items()))[0]
        raise UserError(
            f"checkpoint {checkpoint.uri}: does not fit the model: '{name}' {shape} is only in one of them; "
            "use the model options it was trained with, or another storage.run_name"
        )
    model.load_state_dict(checkpoint.whole(WEIGHT))


def _hashed(chunks: Iterable[Chunk], digest: Any) -> Iterator[Chunk]:
    for chunk in chunks:
        # Hashed while it is written, so that memory is read once.
        digest.update(chunk)
        yield chunk


def _read_range(uri: str, offset: int, size: int) -> bytearray:
    def read() -> bytearray:
        filesystem, path = open_storage(uri)
        with filesystem.open_input_file(path) as file:
            if file.size() < offset + size:
                raise ValueError(f"the file ends before byte {offset + size:,}")
            file.seek(offset)
            return read_all(file, size)

    # Not as a small file: a part of a checkpoint may take minutes.
    return retried(read, uri, reads=False)
