"""What a search would try, without starting anything."""

from dataclasses import asdict
from typing import Any

import torch

from perceiver_dist.search.strategy.candidates import Candidates
from perceiver_dist.search.study.objective import check_metric
from perceiver_dist.search.study.search_config import SearchRunConfig
from perceiver_dist.search.study.search_record import SearchRecord


def preview(config: SearchRunConfig) -> dict[str, Any]:
    """Draw the candidates of a search. Starts nothing, reads no sample and writes nothing.

    Args:
        config: The search's configuration.

    Returns:
        A mapping for JSON:

        - trials: number, values and cost of every trial that is known before scores are; with sampler tpe, which
          learns from scores, what it would draw if there never were any.
        - rejected: candidates drawn and rejected on the way, by reason.
        - training_flops: FLOPs of all of them, if none is stopped.

    Raises:
        UserError: The space or the metric is not valid, or nothing in the space is within the limits.
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
