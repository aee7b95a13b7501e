"""Check that samples have the fields that a run reads, by the counts in the shard indexes, before training starts.

A modality or a label that hardly any sample has is no error of a single sample, since samples may lack modalities. The
run would go on to its end at chance.
"""

from perceiver_dist.config.run_config import RunConfig
from perceiver_dist.data.shard_indexing import SourceData
from perceiver_dist.errors import UserError
from pipelines.fields import FIELD_MODALITY
from pipelines.shards.shard_index import SourceIndex
from pipelines.shards.source import SourceConfig

_HARDLY_ANY = 0.01
"""Share of the samples below which a field is probably missing by mistake."""

_SHOWN_FIELDS = 8
"""Fields in a message, the most frequent ones: enough to see how the shards are made."""


def check_fields(config: RunConfig, data: dict[str, SourceData]) -> list[str]:
    """Compare the fields of the samples with the modalities and labels of their sources.

    Args:
        config: The resolved configuration.
        data: Indexed shards by source name.

    Returns:
        One line for each modality or label that hardly any training sample, or hardly any held-out one, has.

    Raises:
        UserError: No training sample of a source has one of its modalities, or the label.
    """
    warnings = []
    for source in config.sources:
        of_source = data[source.name]
        for field_set, count in _rare_fields(source, of_source.train):
            line = _describe(source, of_source.train, "training", field_set, count)
            if count == 0:
                raise UserError(f"{line}; correct the source's modalities, label or shards")
            warnings.append(line)
        if of_source.evaluation is not None:
            warnings += [
                _describe(source, of_source.evaluation, "held-out", field_set, count)
                for field_set, count in _rare_fields(source, of_source.evaluation)
            ]
    return warnings


def _rare_fields(source: SourceConfig, index: SourceIndex) -> list[tuple[str, int]]:
    """Return the name of each modality, or of the label, that hardly any sample has, and how many samples have it."""
    label = source.label.partition(".")[0]
    fields_of = {f"label field '{label}'": {label}}
    for modality in source.modalities:
        # The sound of a video is in its file.
        kinds = (modality, "video") if modality == "audio" else (modality,)
        fields_of[f"modality {modality}"] = {field for field, kind in FIELD_MODALITY.items() if kind in kinds}
    counts = {what: sum(index.fields[field] for field in fields) for what, fields in fields_of.items()}
    return [(what, count) for what, count in counts.items() if count < _HARDLY_ANY * index.samples]


def _describe(source: SourceConfig, index: SourceIndex, split: str, what: str, count: int) -> str:
    who = f"only {count:,} of {index.samples:,} {split} samples have" if count else (
        f"none of {index.samples:,} {split} samples has"
    )  # fmt: skip
    return f"source '{source.name}': {who} the {what}; their fields are {shown_fields(index)}"


def shown_fields(index: SourceIndex) -> str:
    """Return the most frequent fields of the samples, separated by commas.

    Args:
        index: The indexed shards.
    """
    return ", ".join(field for field, _ in index.fields.most_common(_SHOWN_FIELDS))
