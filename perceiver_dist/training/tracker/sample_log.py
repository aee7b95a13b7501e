"""Log of the samples that were trained on, step by step, so that the order can be audited."""

import json

Samples = dict[int, dict[int, list[str]]]
"""By step and unit, shard and key of each sample in the order of the batch."""


def samples_to_jsonl(samples: Samples) -> str:
    """Return the text of samples.jsonl: a line per step, in order.

    Args:
        samples: Keys by step and unit.
    """
    return "".join(
        json.dumps({"step": step, "units": {str(unit): units[unit] for unit in sorted(units)}}) + "\n"
        for step, units in sorted(samples.items())
    )


def samples_from_jsonl(text: str) -> Samples:
    """Return keys by step and unit.

    Args:
        text: Text of samples.jsonl.
    """
    entries = [json.loads(line) for line in text.splitlines()]
    return {entry["step"]: {int(unit): keys for unit, keys in entry["units"].items()} for entry in entries}
