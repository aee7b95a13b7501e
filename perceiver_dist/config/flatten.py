"""Conversion of a configuration to nested and flat mappings, for MLflow parameters and comparisons."""

from collections.abc import Mapping
from dataclasses import asdict

from perceiver_dist.config.run_config import RunConfig


def to_nested(config: RunConfig) -> dict[str, object]:
    """Return a configuration as nested mappings, with the sources keyed by name.

    Args:
        config: A run's configuration.
    """
    plain = asdict(config)
    plain["sources"] = {source["name"]: source for source in plain["sources"]}
    return plain


def flatten(tree: Mapping[str, object], prefix: str = "") -> dict[str, str]:
    """Flatten nested mappings to dotted names and text, such as {"train.steps": "1000"}.

    Args:
        tree: Nested mappings.
        prefix: Prefix of every name.
    """
    flat: dict[str, str] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping) and value:
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[prefix + name] = str(value)
    return flat
