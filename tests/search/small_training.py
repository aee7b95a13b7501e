"""Small training of two sources without data, candidates drawn for it, and scores for its trials."""

import json
from dataclasses import asdict
from typing import Any

from perceiver_dist.config.optim_config import OptimConfig
from perceiver_dist.config.run_config import RunConfig, StorageConfig, TrainConfig
from perceiver_dist.modalities import AudioInput, ImageInput
from perceiver_dist.model.model_config import ModelConfig
from perceiver_dist.search.strategy.candidates import Candidates
from perceiver_dist.search.study.search_config import SearchConfig, SearchRunConfig
from perceiver_dist.search.study.search_record import SearchRecord, Trial, TrialEvaluation
from pipelines.shards.source import SourceConfig

SQUARES = SourceConfig(
    "squares", "squares/train-*.tar", ["image"], num_classes=4, eval_shards="squares/eval.tar"
)
TONES = SourceConfig(
    "tones", "tones/train-*.tar", ["audio"], num_classes=3, eval_shards="tones/eval.tar", task="multilabel"
)


def small_training(*sources: SourceConfig) -> RunConfig:
    """Return 100 steps of 4 x 8 samples, of squares and tones in turn unless sources are given."""
    return RunConfig(
        model=ModelConfig(
            latents=8,
            width=32,
            self_attends_per_block=1,
            image=ImageInput(height=8, width=8, channels=1, bands=4),
            audio=AudioInput(samples=512, segment=64, bands=4),
        ),
        sources=list(sources) or [SQUARES, TONES],
        optim=OptimConfig(warmup_steps=10),
        train=TrainConfig(steps=100, micro_batch=8, lanes=4, device="cpu"),
        storage=StorageConfig("runs"),
    )


def search_run(**search: Any) -> SearchRunConfig:
    """Return the configuration of a search over the small training."""
    return SearchRunConfig(**vars(small_training()), search=SearchConfig(**search))


def candidates(**search: Any) -> Candidates:
    """Return the candidates of a search over the small training."""
    return Candidates(SearchConfig(**search), small_training(), "cpu")


def complete(trial: Trial, score: float) -> None:
    """Complete a trial with a score."""
    trial.state = "completed"
    trial.evaluations.append(TrialEvaluation(1, trial.cost.steps, score, {"squares/accuracy": score}))


def all_drawn(source: Candidates, record: SearchRecord) -> list[dict[str, Any]]:
    """Draw until no candidate is left, without scores; return the values of all trials."""
    while (trial := source.draw(record)) is not None:
        record.trials.append(trial)
    return [trial.values for trial in record.trials]


def as_json(record: SearchRecord) -> Any:
    """Return the record as plain mappings, for comparisons."""
    return json.loads(json.dumps(asdict(record)))
