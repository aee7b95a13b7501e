"""Dry run: the cost of a training, computed from its configuration and the shard indexes without starting anything."""

from typing import Any

import torch

from perceiver_dist.config.run_config import RunConfig
from perceiver_dist.data.reading_memory import reading_memory
from perceiver_dist.model.cost import forward_flops, paper_flops, parameter_count, tokens_per_modality
from perceiver_dist.model.inputs import token_channels
from perceiver_dist.preflight.gpus import durations, largest_micro_batches
from perceiver_dist.preflight.memory import training_memory
from pipelines.demo.resolve import resolve_demo
from pipelines.errors import ShardError
from pipelines.shards.shard_index import find_index
from pipelines.shards.source import SourceConfig
from pipelines.storage.files import absolute_uri
from pipelines.storage.shard_list import expand_shards
from pipelines.units.schedule import Schedule


def dry_run(config: RunConfig) -> dict[str, Any]:
    """Compute the cost of a run. Starts nothing, reads no sample and writes nothing.

    Args:
        config: The configuration.

    Returns:
        A mapping for JSON:

        - parameters: number of trainable parameters, including heads.
        - device: device for which FLOPs and activations are computed; "auto" is resolved on this machine.
        - forward_flops_per_sample, paper_flops_per_sample: by source, FLOPs of one sample with all modalities of its
          source: as this code computes them, and as the paper formulates them.
        - tokens: number of tokens M by modality; channels: channels C of each token.
        - memory_per_rank: bytes by part and their "total", see `training_memory`. For an elastic run with the minimum
          number of workers; memory_per_rank_of_all_workers is then the same with the maximum.
        - largest_micro_batch: by GPU, the largest micro-batch that fits.
        - duration: by GPU, samples per second of one card, hours and GPU-hours of the run, if they were measured.
        - reading_memory: bytes of decoded units: those that each "rank" holds, in the process of each "reader", and
          waiting in the "object_store", per reader.
        - steps, global_batch: optimizer steps of the run, samples per step.
        - samples_per_epoch: training samples by source; None until all of its shards are indexed.
        - epochs: passes over the samples by source; None if their number is unknown.
        - problems: one line for each error that would stop the run, such as missing shards.

    Raises:
        UserError: The model cannot be built.
    """
    device = _device(config)
    global_batch = config.train.lanes * config.train.micro_batch
    schedule = Schedule(config.weights)
    samples, problems = _count_samples(config)
    return {
        "parameters": parameter_count(config.model, config.heads),
        "device": device,
        "forward_flops_per_sample": {
            source.name: forward_flops(config.model, source.modalities, device) for source in config.sources
        },
        "paper_flops_per_sample": {
            source.name: paper_flops(config.model, source.modalities) for source in config.sources
        },
        "tokens": tokens_per_modality(config.model),
        "channels": token_channels(config.model),
        **_memory(config, device),
        "largest_micro_batch": largest_micro_batches(config),
        "reading_memory": reading_memory(config),
        "duration": durations(config),
        "steps": config.train.steps,
        "global_batch": global_batch,
        "samples_per_epoch": samples,
        "epochs": {
            name: schedule.steps_before(name, config.train.steps) * global_batch / count if count else None
            for name, count in samples.items()
        },
        "problems": problems,
    }


def _device(config: RunConfig) -> str:
    if config.train.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return config.train.device


def _memory(config: RunConfig, device: str) -> dict[str, dict[str, int]]:
    memory = {"memory_per_rank": training_memory(config, device)}
    if config.train.min_workers < config.train.max_workers:
        most = config.train.max_workers
        memory["memory_per_rank_of_all_workers"] = training_memory(config, device, ranks=most)
    return memory


def _count_samples(config: RunConfig) -> tuple[dict[str, int | None], list[str]]:
    """Return the training samples of each source, None if they are unknown, and the problems of its shards."""
    samples: dict[str, int | None] = {}
    problems = []
    for source in config.sources:
        try:
            samples[source.name] = _training_samples(source, config)
        except ShardError as error:
            samples[source.name] = None
            problems.append(str(error))
    return samples, problems


def _training_samples(source: SourceConfig, config: RunConfig) -> int | None:
    """Return the number of training samples; None if shards have yet to be indexed or rendered.

    Raises:
        ShardError: A training or held-out shard is missing, and is not one of a demo that training would render.
    """
    storage = absolute_uri(config.storage.path)
    resolved = resolve_demo(source, storage, render=False)
    try:
        train = [
            find_index(uri, config.index_folder, config.data.storage_seconds)
            for uri in expand_shards(resolved.train_shards, source.name)
        ]
        for uri in expand_shards(resolved.eval_shards, source.name) if resolved.eval_shards else []:
            find_index(uri, config.index_folder, config.data.storage_seconds)
    except ShardError:
        if resolved != source and resolved.train_shards.startswith(storage):
            return None
        raise
    return sum(shard.samples for shard, _ in train) if all(indexed for _, indexed in train) else None
