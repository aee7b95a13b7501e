"""Last collectives of this process, from PyTorch's flight recorder.

Every rank takes part in the same collectives in the same order. So of ranks that wait for each other, the one whose
last number is the lowest, or whose operation is another than the others', is the one to look at.
"""

import json
import sys
from typing import Any

_SHOWN = 5
"""Collectives shown: those of one or two steps at ZeRO stage 2."""


def last_collectives() -> str:
    """Return the last collectives of this process, a line each, the newest last; "" without any.

    A line has the number, the operation, the shapes and the state. NCCL knows whether an operation has started and
    ended on the device; of gloo's it is only known that they were called.
    """
    # Whoever has not loaded torch has no collectives, and need not load it for this.
    recorder: Any = sys.modules.get("torch._C._distributed_c10d")
    if recorder is None:
        return ""
    # PyTorch 2.14 has no public function. It records the last 2,000 collectives unless TORCH_FR_BUFFER_SIZE says else.
    for dump in (recorder._dump_nccl_trace_json, recorder._dump_fr_trace_json):
        entries = json.loads(dump(includeCollectives=True, onlyActive=False)).get("entries", [])
        if entries:
            return "".join(map(_line, entries[-_SHOWN:]))
    return ""


def _line(entry: dict[str, Any]) -> str:
    number, name = entry["collective_seq_id"], entry["profiling_name"]
    return f"collective {number}: {name} of {entry['input_sizes']}, {entry['state']}\n"
