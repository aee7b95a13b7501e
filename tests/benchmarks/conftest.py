"""Data sets of the benchmarks, small."""

from dataclasses import replace

import pytest

from perceiver_dist.benchmarks.data import data_sets
from perceiver_dist.benchmarks.data.data_sets import DataSet, make_data_set


@pytest.fixture(scope="session")
def small_sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, DataSet]:
    """Return the data sets with 16 samples each; the tiny pictures, which are in the repository, are complete."""
    folder = tmp_path_factory.mktemp("sets")
    sets = {}
    with pytest.MonkeyPatch.context() as patch:
        for name, (inputs, batch, samples, count) in data_sets.DATA_SETS.items():
            patch.setitem(data_sets.DATA_SETS, name, (inputs, batch, samples, 16 if samples else count))
            sets[name] = replace(make_data_set(name, folder), batch=4)
    return sets
