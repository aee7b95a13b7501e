"""Replay of one unit: its samples as training decodes them, to inspect a step that went wrong."""

from dataclasses import replace

import numpy as np
from rich.console import Group
from rich.table import Table
from rich.text import Text

from perceiver_dist.config.run_config import RunConfig
from perceiver_dist.data.shard_indexing import list_shards
from perceiver_dist.errors import UserError
from perceiver_dist.training.datasets import training_units
from perceiver_dist.training.prepare import resolve
from pipelines.demo.resolve import resolve_demo
from pipelines.shards.shard_index import SourceIndex, index_shard
from pipelines.units.unit_maker import Unit


def replay(config: RunConfig, name: str) -> Group:
    """Read and decode a unit as training does, and describe its samples. Nothing is started.

    Args:
        config: Configuration of the run, as in config.yaml of its folder.
        name: Source and number of the unit, such as "clips/1625".

    Returns:
        A row for each sample: key, label, and for each modality the min, mean and max value; then a line for each bad
        sample that was replaced.

    Raises:
        UserError: The source is unknown, the number is not a number, or the unit cannot be read.
    """
    source_name, _, number = name.partition("/")
    known = [source.name for source in config.sources]
    if source_name not in known or not number.isdecimal():
        raise UserError(
            f"--replay is '{name}'; name a source ({', '.join(known)}) and a unit, as in {known[0]}/12"
        )
    config = resolve(config)
    source = next(source for source in config.sources if source.name == source_name)
    # Only this source, so that the shards of the others need not exist here.
    config = replace(config, sources=[resolve_demo(source, config.storage.path)])
    shards = list_shards(config)[source_name]
    index = SourceIndex(
        [index_shard(uri, config.index_folder, config.data.storage_seconds) for uri in shards]
    )
    return describe(training_units(config, config.sources[0], index).make(int(number)))


def describe(unit: Unit) -> Group:
    """Return a table of a unit's samples, and the bad samples that were replaced.

    Args:
        unit: As `UnitMaker.make` returns it.
    """
    modalities = [column.removesuffix("_present") for column in unit if column.endswith("_present")]
    table = Table("row", box=None, pad_edge=False)
    table.add_column("sample", overflow="fold")
    table.add_column("label")
    for modality in modalities:
        table.add_column(f"{modality} (min / mean / max)")
    for row, key in enumerate(unit["keys"]):
        label = np.flatnonzero(unit["label"][row]) if unit["label"].ndim == 2 else unit["label"][row]
        values = [
            _range(unit[modality][row]) if unit[f"{modality}_present"][row] else "missing"
            for modality in modalities
        ]
        table.add_row(str(row), key, str(label), *values)
    bad = [Text(f"replaced: {shard}/{key}: {reason}") for shard, key, reason in unit["quarantined"]]
    return Group(table, *bad)


def _range(array: np.ndarray) -> str:
    return f"{array.min()} / {array.mean():.1f} / {array.max()}"
