"""Checkpoint files: reading, whichever ranks wrote them, and rejection of incomplete ones."""

from pathlib import Path
from random import Random

import fsspec
import pytest
import torch
import written_checkpoints as written
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import nn

from perceiver_dist.checkpoint.format import (
    PARTS,
    Span,
    StoredCheckpoint,
    first_fault,
    load_weights,
    rank_file,
    read_weights,
    write_rank_file,
)
from perceiver_dist.checkpoint.manifest import Manifest, write_manifest
from perceiver_dist.errors import UserError


def write(folder: Path, world_size: int, ranks: list[list[written.Cut]] | None = None) -> str:
    """Write the checkpoint of step 7."""
    ranks = ranks or written.cut(written.state(7), world_size)
    files = [written.write_file(folder, rank, world_size, spans, 7) for rank, spans in enumerate(ranks)]
    checkpoint = str(folder / "step-00000007")
    write_manifest(checkpoint, Manifest(written.progress_of(7, world_size), tuple(files)))
    return checkpoint


@pytest.mark.parametrize("world_size", [1, 2, 3, 20])
def test_tensors_are_read_whatever_the_world_size_that_wrote_them(tmp_path: Path, world_size: int) -> None:
    stored = StoredCheckpoint(write(tmp_path, world_size))
    assert stored.progress == written.progress_of(7, world_size)
    for part in PARTS:
        for name, tensor in stored.whole(part).items():
            assert torch.equal(tensor, written.state(7)[part, name])


@pytest.mark.parametrize("world_size", [1, 3])
def test_any_span_can_be_read(tmp_path: Path, world_size: int) -> None:
    stored = StoredCheckpoint(write(tmp_path, world_size))
    wanted = {("weight", "latents"): Span(4, 9), ("exp_avg_sq", "head/weight"): Span(0, 3)}
    found = stored.read(wanted)
    for key, span in wanted.items():
        assert torch.equal(found[key], written.state(7)[key].flatten()[span.start : span.start + span.numel])


def test_a_rank_file_is_a_safetensors_file(tmp_path: Path) -> None:
    checkpoint = Path(write(tmp_path, 2))
    tensors = load_file(checkpoint / rank_file(1, 2, "writer"))
    assert torch.equal(
        tensors["exp_avg/8/head/weight"], written.state(7)["exp_avg", "head/weight"].flatten()[8:]
    )


def test_a_checkpoint_is_read_from_any_storage(tmp_path: Path) -> None:
    fsspec.filesystem("memory").store.clear()
    fsspec.filesystem("memory").put(write(tmp_path, 2), "/bucket/step-00000007", recursive=True)
    weights = read_weights("memory://bucket/step-00000007")
    assert torch.equal(weights["latents"], written.state(7)["weight", "latents"])


def test_weights_of_another_model_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"does not fit the model: 'bias' \(2,\) is only in one of them"):
        load_weights(nn.Linear(3, 2), StoredCheckpoint(write(tmp_path, 1)))


@pytest.mark.parametrize(
    ("rank", "spans", "message"),
    [
        (0, [("weight", "latents", Span(0, 7))], "hold no element 7 of 'latents'"),
        (1, [("weight", "latents", Span(7, 8))], "hold element 7 twice of 'latents'"),
        (1, [], "hold no element 8 of 'latents'"),
    ],
)
def test_missing_and_repeated_elements_are_rejected(
    tmp_path: Path, rank: int, spans: list[written.Cut], message: str
) -> None:
    ranks = written.cut(written.state(7), 2)
    ranks[rank] = [*spans, *(of for of in ranks[rank] if of[:2] != ("weight", "latents"))]
    with pytest.raises(UserError, match=message):
        StoredCheckpoint(write(tmp_path, 2, ranks))


@given(st.lists(st.integers(0, 5), max_size=6), st.integers(0, 20), st.randoms())
def test_spans_are_complete_if_they_cover_every_element_once(
    sizes: list[int], numel: int, random: Random
) -> None:
    starts = [sum(sizes[:index]) for index in range(len(sizes))]
    spans = [Span(start, size) for start, size in zip(starts, sizes, strict=True) if size]
    random.shuffle(spans)
    assert (first_fault(spans, numel) == "") == (sum(sizes) == numel)
    assert first_fault([*spans, Span(0, 1)], numel) != ""


def test_a_failed_write_leaves_no_file(tmp_path: Path) -> None:
    (tmp_path / "step-00000007").write_text("in the way")
    with pytest.raises(OSError, match="step-00000007"):
        write_rank_file(str(tmp_path / "step-00000007" / "rank"), b"", torch.zeros(4))
