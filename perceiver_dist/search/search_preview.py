"""Preview of a search (`--dry_run`): its candidates and their costs, without starting anything."""

from dataclasses import asdict
from typing import Any

import torch

from perceiver_dist.search.strategy.candidates import Candidates
from perceiver_dist.search.study.objective import check_metric
from perceiver_dist.search.study.search_config import SearchRunConfig
from perceiver_dist.search.study.search_record import SearchRecord


def preview(config: SearchRunConfig) -> dict[str, Any]:
    """Draw the candidates of a search, without starting Ray, reading data or writing files.

    Args:
        config: Configuration of the search.

    Returns:
        A mapping for JSON:

        - trials: number, values and cost of every trial. Sampler tpe learns from scores; shown is what it draws
          without any.
        - rejected: reason -> number of candidates that were drawn and rejected.
        - training_flops: training FLOPs of all trials, if none is stopped early.

    Raises:
        UserError: The space or the metric is not valid, or no candidate is within the limits.
    """
    check_metric(config.search.metric, config)
    device = "cuda" if torch.cuda.is_available() and config.train.device != "cpu" else "cpu"
    record = SearchRecord()
    candidates = Candidates(config.search, config.training, device)
    while (trial := candidates.draw(record)) is not None:
        record.trials.append(trial)
    return {
        "trials": [
            {"number": trial.number, "values": trial.values, "cost": asdict(trial.cost)}
            for trial in record.trials
        ],
        "rejected": record.rejected,
        "training_flops": sum(trial.cost.training_flops for trial in record.trials),
    }
