"""Fuzzing campaign: damaged files take the real path of a sample, from shard to index, reader and sandboxed decoder."""

import resource
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from damage import DAMAGES, damaged_file
from valid_files import field_of_kind, valid_files

from perceiver_dist.modalities import AudioInput, ImageInput, ModalityInput, PointCloudInput, VideoInput
from pipelines.decode.sandbox import sandboxed
from pipelines.errors import ShardError
from pipelines.fields import FIELD_MODALITY
from pipelines.limits import Limits
from pipelines.shards.shard_index import SourceIndex, index_shard
from pipelines.shards.shard_writer import Sample, write_shards
from pipelines.shards.source import DataConfig, SourceConfig
from pipelines.units.plan import EvaluationPlan
from pipelines.units.unit_maker import Unit, UnitMaker

INPUTS: dict[str, ModalityInput] = {
    "image": ImageInput(height=16, width=16),
    "audio": AudioInput(sample_rate=8000, samples=800, segment=100),
    "video": VideoInput(frames=4, frames_per_second=16.0, height=16, width=16),
    "points": PointCloudInput(points=64),
}
UNIT_SIZE = 50


@dataclass
class Tally:
    """Outcomes of the files of one kind and damage.

    Attributes:
        decoded: Decoded to the right shapes.
        quarantined: Quarantined with a reason, including those whose decoder died.
        crashed: Crashed the decoder or exceeded its time limit, in the sandbox.
        rejected: Shards that could not be indexed.
    """

    decoded: int = 0
    quarantined: int = 0
    crashed: int = 0
    rejected: int = 0

    @property
    def files(self) -> int:
        """Number of files."""
        return self.decoded + self.quarantined + self.rejected


Report = dict[tuple[str, str], Tally]


def write_damaged(folder: Path, kinds: Iterable[str], each: int) -> list[str]:
    """Write shards of damaged files, `each` per kind and damage, with keys KIND/DAMAGE/NUMBER."""
    samples: list[Sample] = [
        {
            "__key__": f"{kind}/{damage}/{number}",
            field_of_kind(kind): damaged_file(valid_files()[kind], kind, damage, number),
            **({} if kind == "json" else {"cls": 1}),
        }
        for kind in kinds
        for damage in DAMAGES
        for number in range(each)
    ]
    return [str(path) for path in write_shards(samples, folder, "fuzz", samples_per_shard=1000)]


def maker_of(shards: list[str], label: str = "cls") -> UnitMaker:
    """Return a maker of evaluation units of these shards, with all modalities."""
    folder = Path(shards[0]).parent / "index"
    index = SourceIndex([index_shard(shard, str(folder)) for shard in shards])
    return UnitMaker(
        source=SourceConfig("fuzz", "x.tar", list(INPUTS), num_classes=2, label=label),
        inputs=INPUTS,
        index=index,
        plan=EvaluationPlan(index.samples, UNIT_SIZE, lanes=1),
        # Far above what a valid file of this size takes, so that a busy machine does not count as a hang.
        data=DataConfig(limits=Limits(decode_seconds=20)),
    )


def units_of(maker: UnitMaker) -> Iterator[Unit]:
    """Make all units, with each sample decoded in its own process."""
    assert isinstance(maker.plan, EvaluationPlan)
    with sandboxed(maker.decode) as decode:
        for number in range(maker.plan.units):
            yield replace(maker, decode=decode).make(number)


def outcomes(units: Iterable[Unit]) -> dict[str, str]:
    """Return, by key, the reason for which a sample was quarantined; "" if it was decoded completely."""
    found: dict[str, str] = {}
    for unit in units:
        reasons = {key: reason for _, key, reason in unit["quarantined"]}
        for row, name in enumerate(unit["keys"]):
            if not name:
                continue
            key = name.partition(".tar/")[2]
            modality = FIELD_MODALITY.get(field_of_kind(key.partition("/")[0]))
            complete = unit["valid"][row] and (modality is None or unit[f"{modality}_present"][row])
            found[key] = "" if complete else reasons[key]
    return found


def decoder_died(reason: str) -> bool:
    """Return whether a reason is a crash of the decoder, or its time limit."""
    return reason.startswith(("the decoder ended with", "decoding took more than"))


def damage_samples(folder: Path, each: int) -> Report:
    """Damage media, labels and arrays, and count their outcomes."""
    media = [kind for kind in valid_files() if kind != "json"]
    found = outcomes(units_of(maker_of(write_damaged(folder / "media", media, each))))
    found |= outcomes(units_of(maker_of(write_damaged(folder / "labels", ["json"], each), "json.label")))
    report: Report = defaultdict(Tally)
    for key, reason in found.items():
        kind, damage, *_ = key.split("/")
        tally = report[kind, damage]
        tally.decoded += not reason
        tally.quarantined += bool(reason)
        tally.crashed += decoder_died(reason)
    return dict(report)


def damage_shards(folder: Path, each: int) -> Report:
    """Damage whole shards: each is rejected by the index, or all of its samples are decoded or quarantined."""
    whole = shard_of_all(folder)
    report: Report = {}
    for damage in DAMAGES:
        tally = report["tar", damage] = Tally()
        for number in range(each):
            path = folder / f"{damage}-{number}.tar"
            path.write_bytes(damaged_file(whole, "tar", damage, number))
            try:
                maker = maker_of([str(path)])
            except ShardError:
                tally.rejected += 1
                continue
            reasons = outcomes_of_shard(maker)
            tally.decoded += not any(reasons)
            tally.quarantined += any(reasons)
            tally.crashed += any(map(decoder_died, reasons))
    return report


def shard_of_all(folder: Path) -> bytes:
    """Return a valid shard with one sample of every kind."""
    samples: list[Sample] = [
        {"__key__": f"{number:02d}", field_of_kind(kind): content, "cls": 1}
        for number, (kind, content) in enumerate(valid_files().items())
    ]
    [path] = write_shards(samples, folder, "whole", samples_per_shard=100)
    return path.read_bytes()


def outcomes_of_shard(maker: UnitMaker) -> list[str]:
    """Return, for every sample of the index, the reason for which it was quarantined; "" if it was decoded."""
    reasons: list[str] = []
    for unit in units_of(maker):
        named = [reason for *_, reason in unit["quarantined"]]
        reasons += named + [""] * int(unit["valid"].sum())
    if len(reasons) != maker.index.samples:
        raise RuntimeError(f"{maker.index.samples} samples are indexed, {len(reasons)} accounted for")
    return reasons


def table(report: Report) -> str:
    """Return the report as a table to print."""
    heads = ("kind", "damage", "files", "decoded", "quarantined", "decoder crashed", "rejected by the index")
    rows = [
        (name, (tally.files, tally.decoded, tally.quarantined, tally.crashed, tally.rejected))
        for name, tally in sorted(report.items())
    ]
    sums = [sum(counts[column] for _, counts in rows) for column in range(len(heads) - 2)]
    lines: list[tuple[object, ...]] = [
        heads,
        *((*name, *counts) for name, counts in rows),
        ("all", "", *sums),
    ]
    widths = [max(len(str(line[column])) for line in lines) for column in range(len(heads))]
    return "\n".join(
        "  ".join(str(cell).ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines
    )


def peak_memory() -> int:
    """Return the peak memory, in bytes, of the largest child process that has ended."""
    return resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024
