"""What a linear model makes of the same samples: the number that a trained model has to beat.

Every sample is decoded as for training and made into a few hundred plain features, without anything learned. A logistic
regression, whose strength of regularisation is chosen by cross-validation on the training samples, is tested once on
the held-out ones.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from perceiver_dist.config.run_config import RunConfig
from perceiver_dist.errors import UserError
from perceiver_dist.modalities import AudioInput, ModalityInput, PointCloudInput, VideoInput
from perceiver_dist.model.mel import log_mel, mel_filters
from pipelines.demo.resolve import resolve_demo
from pipelines.inspection.shard_access import index_shards
from pipelines.shards.source import SourceConfig
from pipelines.storage.files import expand_shards
from pipelines.units.plan import EvaluationPlan
from pipelines.units.unit_maker import UnitMaker

_SIDE = 16
"""Rows and columns that pictures are averaged down to."""
_BANDS, _HOP = 40, 128
_FOLDS, _STRENGTHS = 5, np.logspace(-4, 2, 7)
_MAX_STEPS = 500


@dataclass(frozen=True)
class LinearBaseline:
    """What was found of one source.

    Attributes:
        source: Its name.
        trained: Samples learned from.
        held_out: Samples tested on.
        features: Numbers that a sample was made into.
        accuracy: Of the linear model on the held-out samples.
        majority: Accuracy of always naming the commonest class of the training samples.
    """

    source: str
    trained: int
    held_out: int
    features: int
    accuracy: float
    majority: float


def linear_baselines(config: RunConfig, on_source: Callable[[str], None]) -> list[LinearBaseline]:
    """Fit a linear model for every source of a configuration that has one label per sample and held-out shards.

    Everything is read by this process.

    Args:
        config: A run's configuration.
        on_source: Called with a source's name before it is read.

    Raises:
        UserError: No source is of this kind, a shard is missing or damaged, or a class has one training sample.
    """
    sources = [source for source in config.sources if source.task == "softmax" and source.eval_shards]
    if not sources:
        raise UserError(
            "sources: none has one label per sample and eval_shards, so there is nothing to compare"
        )
    found = []
    for source in sources:
        on_source(source.name)
        found.append(_baseline(config, resolve_demo(source, config.storage.path)))
    return found


def _baseline(config: RunConfig, source: SourceConfig) -> LinearBaseline:
    features, labels = _read(config, source, source.train_shards)
    held_out, answers = _read(config, source, source.eval_shards)
    fewest = int(np.unique(labels, return_counts=True)[1].min())
    if fewest < 2:
        raise UserError(
            f"source '{source.name}': a class has 1 training sample; cross-validation needs 2 of each"
        )
    strength = GridSearchCV(
        LogisticRegression(max_iter=_MAX_STEPS), {"C": _STRENGTHS}, cv=min(_FOLDS, fewest), n_jobs=1
    )
    with warnings.catch_warnings():
        # The weakest regularisations may not be done by then; they are hardly the ones chosen.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = make_pipeline(StandardScaler(), strength).fit(features, labels)
    commonest = np.bincount(labels).argmax()
    return LinearBaseline(
        source.name,
        len(labels),
        len(answers),
        features.shape[1],
        float((model.predict(held_out) == answers).mean()),
        float((answers == commonest).mean()),
    )


def _read(config: RunConfig, source: SourceConfig, shards: str) -> tuple[np.ndarray, np.ndarray]:
    """All samples of shards, bad ones left out: (samples, features) fp64 and (samples,) int64."""
    inputs = config.inputs(source)
    index = index_shards(expand_shards(shards, source.name), config.index_folder, config.data.storage_seconds)
    plan = EvaluationPlan(index.samples, config.train.micro_batch, lanes=1)
    maker = UnitMaker(source, inputs, index, plan, config.data)
    features, labels = [], []
    for number in range(plan.units):
        unit = maker.make(number)
        features.append(unit_features({name: unit[name][unit["valid"]] for name in inputs}, inputs))
        labels.append(unit["label"][unit["valid"]])
    return np.concatenate(features), np.concatenate(labels)


def unit_features(arrays: Mapping[str, np.ndarray], inputs: Mapping[str, ModalityInput]) -> np.ndarray:
    """Return the features of B samples, those of their modalities side by side.

    Args:
        arrays: (B, *array_shape) by modality, zeros where a sample lacks it.
        inputs: What each modality was decoded to.

    Returns:
        (B, features) fp64.
    """
    return np.concatenate([_features(array, inputs[name]) for name, array in arrays.items()], axis=1)


def _features(array: np.ndarray, spec: ModalityInput) -> np.ndarray:
    if isinstance(spec, AudioInput):
        return _sound_features(array, spec.sample_rate)
    if isinstance(spec, PointCloudInput):
        return _cloud_features(array)
    if isinstance(spec, VideoInput):
        return np.concatenate([_small_picture(array.mean(1)), _small_picture(array.std(1))], axis=1)
    return _small_picture(array)


def _small_picture(pictures: np.ndarray) -> np.ndarray:
    """(B, height, width, channels) -> (B, rows * columns * channels): means over cells of at most 16 by 16."""
    samples, height, width, channels = pictures.shape
    rows, columns = min(height, _SIDE), min(width, _SIDE)
    cells = torch.nn.functional.adaptive_avg_pool2d(
        torch.from_numpy(np.array(pictures, np.float64)).permute(0, 3, 1, 2), (rows, columns)
    )
    return np.asarray(cells.reshape(samples, rows * columns * channels))


def _sound_features(sounds: np.ndarray, sample_rate: int) -> np.ndarray:
    """(B, samples) -> (B, 2 * bands): mean and standard deviation over time of a log-mel spectrogram."""
    whole = sounds[:, : sounds.shape[1] // _HOP * _HOP]
    filters = mel_filters(sample_rate, 2 * _HOP, _BANDS)
    levels = np.asarray(log_mel(torch.from_numpy(whole / 32768.0), _HOP, filters))
    return np.concatenate([levels.mean(1), levels.std(1)], axis=1)


def _cloud_features(clouds: np.ndarray) -> np.ndarray:
    """(B, points, 3) -> (B, features): moments and quantiles of each coordinate and of the distance from the mean."""
    centred = clouds.astype(np.float64) - clouds.mean(1, keepdims=True)
    values = np.concatenate([centred, np.linalg.norm(centred, axis=2, keepdims=True)], axis=2)
    quantiles = np.quantile(values, np.linspace(0, 1, 11), axis=1)
    products = np.einsum("bpi,bpj->bij", centred, centred) / clouds.shape[1]
    moments = [(values**power).mean(1) for power in (1, 2, 3)]
    return np.concatenate([*moments, *quantiles, products.reshape(len(clouds), -1)], axis=1)
