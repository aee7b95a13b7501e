"""Linear baseline: the accuracy of a logistic regression on the same samples, which a trained model has to beat.

Every sample is decoded as for training and reduced to a few hundred features, none of them learned. The strength of the
regularisation is chosen by cross-validation on the training samples, and the model is evaluated once on the held-out
samples.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from perceiver_dist.config.run_config import RunConfig
from perceiver_dist.errors import UserError
from perceiver_dist.modalities import AudioInput, ModalityInput, PointCloudInput, VideoInput
from perceiver_dist.model.mel import log_mel, mel_filters
from pipelines.demo.resolve import resolve_demo
from pipelines.inspection.shard_access import index_shards
from pipelines.shards.source import SourceConfig
from pipelines.storage.shard_list import expand_shards
from pipelines.units.plan import EvaluationPlan
from pipelines.units.unit_maker import UnitMaker

_SIDE = 16
"""Rows and columns that images are averaged down to; 16 x 16 cells in RGB are 768 features."""
_BANDS, _HOP = 40, 128
"""Bands and hop length of the log-mel spectrogram: 40 bands are usual for speech, 128 samples are 16 ms at 8 kHz."""
_FOLDS = 5
"""Folds of the cross-validation, the usual number; fewer if a class has fewer samples."""
_STRENGTHS = np.logspace(-4, 2, 7)
"""Candidates of scikit-learn's C, one per power of ten: from features that hardly count to almost no regularisation."""
_MAX_ITERATIONS = 500
"""Iteration limit of a fit. Only the weakest regularisations reach it, and they are seldom the best."""


@dataclass(frozen=True)
class LinearBaseline:
    """Linear baseline of one source.

    Attributes:
        source: Name of the source.
        trained: Number of training samples.
        held_out: Number of held-out samples.
        features: Number of features per sample.
        accuracy: Accuracy of the linear model on the held-out samples.
        majority: Accuracy of always predicting the most common class of the training samples.
    """

    source: str
    trained: int
    held_out: int
    features: int
    accuracy: float
    majority: float


def linear_baselines(
    config: RunConfig, on_source: Callable[[str], None], on_fit: Callable[[str, int, int], None]
) -> list[LinearBaseline]:
    """Fit a linear model for every source with one label per sample and held-out shards.

    All samples are read in this process.

    Args:
        config: A run's configuration.
        on_source: Called with a source's name before it is read.
        on_fit: Called before each fit with the source's name, the number of the fit from 1, and the number of fits.
            With many classes the fits of a source take minutes.

    Raises:
        UserError: There is no such source, a shard is missing or damaged, or a class has one training sample.
    """
    sources = [source for source in config.sources if source.task == "softmax" and source.eval_shards]
    if not sources:
        raise UserError(
            "sources: none has one label per sample and eval_shards; add one with task softmax and eval_shards"
        )
    baselines = []
    for source in sources:
        on_source(source.name)
        baselines.append(_baseline(config, resolve_demo(source, config.storage.path), on_fit))
    return baselines


def _baseline(
    config: RunConfig, source: SourceConfig, on_fit: Callable[[str, int, int], None]
) -> LinearBaseline:
    features, labels = _read(config, source, source.train_shards)
    held_out, true_labels = _read(config, source, source.eval_shards)
    smallest_class = int(np.unique(labels, return_counts=True)[1].min())
    if smallest_class < 2:
        raise UserError(
            f"source '{source.name}': a class has 1 training sample; cross-validation needs 2 of each"
        )
    model = _fit(
        features, labels, min(_FOLDS, smallest_class), lambda *progress: on_fit(source.name, *progress)
    )
    majority_class = np.bincount(labels).argmax()
    return LinearBaseline(
        source.name,
        len(labels),
        len(true_labels),
        features.shape[1],
        float((model.predict(held_out) == true_labels).mean()),
        float((true_labels == majority_class).mean()),
    )


def _fit(
    features: np.ndarray, labels: np.ndarray, folds: int, on_fit: Callable[[int, int], None]
) -> Pipeline:
    """Return a classifier of features (samples, features), with the best C in cross-validation."""
    fits = len(_STRENGTHS) * folds + 1  # The last one is on all training samples.
    upcoming = count(2)

    def accuracy(classifier: LogisticRegression, test_features: np.ndarray, test_labels: np.ndarray) -> float:
        # GridSearchCV has no callback, but it calls this after every fit but the last.
        on_fit(next(upcoming), fits)
        return float(classifier.score(test_features, test_labels))

    search = GridSearchCV(
        LogisticRegression(max_iter=_MAX_ITERATIONS),
        {"C": _STRENGTHS},
        scoring=accuracy,
        cv=folds,
        # Other processes could not report progress.
        n_jobs=1,
    )
    on_fit(1, fits)
    with warnings.catch_warnings():
        # See _MAX_ITERATIONS.
        warnings.simplefilter("ignore", ConvergenceWarning)
        return make_pipeline(StandardScaler(), search).fit(features, labels)


def _read(config: RunConfig, source: SourceConfig, shards: str) -> tuple[np.ndarray, np.ndarray]:
    """Return features (samples, features) fp64 and labels (samples,) int64 of all samples that are not bad."""
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
    """Return the features of B samples, concatenated over their modalities.

    Args:
        arrays: (B, *array_shape) by modality, zeros where a sample has no such modality.
        inputs: Input options of each modality.

    Returns:
        (B, features) fp64.
    """
    return np.concatenate([_features(array, inputs[name]) for name, array in arrays.items()], axis=1)


def _features(array: np.ndarray, spec: ModalityInput) -> np.ndarray:
    if isinstance(spec, AudioInput):
        return _audio_features(array, spec.sample_rate)
    if isinstance(spec, PointCloudInput):
        return _cloud_features(array)
    if isinstance(spec, VideoInput):
        return np.concatenate([_image_features(array.mean(1)), _image_features(array.std(1))], axis=1)
    return _image_features(array)


def _image_features(images: np.ndarray) -> np.ndarray:
    """(B, height, width, channels) -> (B, rows * columns * channels): means over a grid of at most 16 by 16 cells."""
    samples, height, width, channels = images.shape
    rows, columns = min(height, _SIDE), min(width, _SIDE)
    cells = torch.nn.functional.adaptive_avg_pool2d(
        torch.from_numpy(np.array(images, np.float64)).permute(0, 3, 1, 2), (rows, columns)
    )
    return np.asarray(cells.reshape(samples, rows * columns * channels))


def _audio_features(audio: np.ndarray, sample_rate: int) -> np.ndarray:
    """(B, samples) -> (B, 2 * bands): mean and standard deviation over time of a log-mel spectrogram."""
    whole = audio[:, : audio.shape[1] // _HOP * _HOP]
    filters = mel_filters(sample_rate, 2 * _HOP, _BANDS)
    levels = np.asarray(log_mel(torch.from_numpy(whole / 32768.0), _HOP, filters))
    return np.concatenate([levels.mean(1), levels.std(1)], axis=1)


def _cloud_features(clouds: np.ndarray) -> np.ndarray:
    """(B, points, 3) -> (B, features): moments and quantiles of each coordinate and of the distance to the mean."""
    centred = clouds.astype(np.float64) - clouds.mean(1, keepdims=True)
    values = np.concatenate([centred, np.linalg.norm(centred, axis=2, keepdims=True)], axis=2)
    quantiles = np.quantile(values, np.linspace(0, 1, 11), axis=1)
    products = np.einsum("bpi,bpj->bij", centred, centred) / clouds.shape[1]
    moments = [(values**power).mean(1) for power in (1, 2, 3)]
    # The matrix of second moments shows a cloud's orientation, which moments of single axes do not.
    return np.concatenate([*moments, *quantiles, products.reshape(len(clouds), -1)], axis=1)
