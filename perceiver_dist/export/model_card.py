"""Model card: the README.md of an exported model, with its use, inputs, training data, settings, results and costs.

It begins with the YAML metadata that model hubs read.
"""

from collections.abc import Sequence

import yaml

from perceiver_dist.checkpoint.stored_model import StoredModel
from perceiver_dist.display.markdown import markdown_table
from perceiver_dist.export.training_facts import TrainingFacts
from perceiver_dist.model.cost import forward_flops, parameter_count, tokens_per_modality
from perceiver_dist.model.model_config import ModelConfig
from pipelines.shards.source import SourceConfig


def model_card(stored: StoredModel, facts: TrainingFacts | None, licence: str | None) -> str:
    """Return the model card as Markdown.

    Args:
        stored: The model.
        facts: Facts about its training; None if they are unknown.
        licence: Licence of the model; None if it is not stated.
    """
    config = stored.config
    # Keys of the Hugging Face Hub, such as "license".
    head = {"library_name": "perceiver_dist", "tags": ["perceiver", *config.model.modalities]}
    parts = [
        f"---\n{yaml.safe_dump(head | ({'license': licence} if licence else {}), sort_keys=False)}---",
        f"# {_name(stored)}",
        "A Perceiver ([Jaegle et al. 2021](https://arxiv.org/abs/2103.03206)) that tells "
        + _listed([f"the {source.num_classes} classes of `{source.name}`" for source in config.sources])
        + " apart. One set of weights serves all of its sources and modalities; `classes.json` names the classes.",
        "## Use",
        _use(config.sources),
        "## Inputs",
        _table("modality", "decoded to", "tokens", rows=_inputs(config.model)),
        "## Trained on",
        _table(
            "source",
            "task",
            "classes",
            "modalities",
            "training shards",
            "held-out shards",
            rows=_sources(stored),
        ),
        "## Training",
        _table("setting", "value", rows=_settings(stored, facts)),
        "## Results",
        _results(facts),
        "## Costs",
        _table("what", "amount", rows=_costs(stored)),
        "## Licence",
        licence or "Not stated. Ask whoever gave you the model.",
    ]
    return "\n\n".join(parts) + "\n"


_EXAMPLE_NAMES = {"image": "photo.jpg", "audio": "sound.wav", "video": "clip.mp4", "points": "mesh.off"}


def _use(sources: Sequence[SourceConfig]) -> str:
    file, source = _EXAMPLE_NAMES[sources[0].modalities[0]], sources[0].name
    choice = f', source="{source}"' if len(sources) > 1 else ""
    return (
        '```python\nimport perceiver_dist\nmodel = perceiver_dist.load("FOLDER")  # where this page lies\n'
        f'print(model.predict(["{file}"]{choice})[0].top(3))\n```'
    )


def _name(stored: StoredModel) -> str:
    return stored.config.storage.run_name or stored.place.rpartition("/")[2]


def _inputs(model: ModelConfig) -> list[Sequence[str]]:
    counts = tokens_per_modality(model)
    return [
        (name, f"{spec.array_dtype} {spec.array_shape}", f"{counts[name]:,}")
        for name, spec in model.modalities.items()
    ]


def _sources(stored: StoredModel) -> list[Sequence[str]]:
    return [
        (
            source.name,
            source.task,
            str(source.num_classes),
            ", ".join(source.modalities),
            f"`{source.train_shards}`",
            f"`{source.eval_shards}`" if source.eval_shards else "none",
        )
        for source in stored.config.sources
    ]


def _settings(stored: StoredModel, facts: TrainingFacts | None) -> list[Sequence[str]]:
    train, optim = stored.config.train, stored.config.optim
    known = (
        [("steps", f"{facts.steps:,} of {train.steps:,}"), ("samples", f"{facts.samples_seen:,}")]
        if facts
        else []
    )
    return [
        *known,
        ("samples per step", f"{train.lanes * train.micro_batch:,}"),
        ("optimizer", f"{optim.optimizer}, weight decay {optim.weight_decay:g}"),
        (
            "learning rate",
            f"{optim.learning_rate:g}, {optim.schedule} after {optim.warmup_steps} steps of warm-up",
        ),
        ("precision", train.precision),
        ("ZeRO stage", str(stored.config.deepspeed.zero_stage)),
        ("seed", str(train.seed)),
        ("everything else", "`config.yaml`"),
    ]


def _results(facts: TrainingFacts | None) -> str:
    if facts is None or not facts.metrics:
        return "Not recorded: the run did not end at these weights, or it is not known."
    rows = [(name, f"{value:.4g}") for name, value in facts.metrics.items()]
    return "On the held-out shards, at the end of the training.\n\n" + _table("metric", "value", rows=rows)


def _costs(stored: StoredModel) -> list[Sequence[str]]:
    config = stored.config
    count = parameter_count(config.model, config.heads)
    return [
        ("parameters", f"{count:,}"),
        ("weights", f"{4 * count / 2**20:,.1f} MiB in fp32"),
        *(
            (f"a sample of `{source.name}`", _cost_of_sample(config.model, source))
            for source in config.sources
        ),
    ]


def _cost_of_sample(model: ModelConfig, source: SourceConfig) -> str:
    counts = tokens_per_modality(model)
    flops = forward_flops(model, source.modalities)
    return f"{sum(counts[name] for name in source.modalities):,} tokens, {flops:.3g} FLOPs for a forward pass"


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def _table(*columns: str, rows: Sequence[Sequence[str]]) -> str:
    return "\n".join(markdown_table(columns, rows, numbers=False))
