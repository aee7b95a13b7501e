"""Tests of the Triton kernels without a GPU: results in Triton's interpreter, and machine code for an H100.

Triton reads TRITON_INTERPRET when it is imported, so the interpreter runs in a process of its own.
"""

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from kernel_code import KernelCode, compile_kernel

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="comes with torch for CUDA")

SIZES = {
    "imagenet": (32, 512, 224, 224, 5),
    "audioset_video": (128, 512, 448, 28, 386),
    "default_image": (64, 128, 48, 48, 5),
}
"""Batch, latents, rows, columns and feature channels of the papers' models, and of the default one."""
MOST_INSTRUCTIONS = {"attend": 13.0, "attend_backward": 19.0}
"""Per score in the innermost loop. Triton 3.6 and 3.8 made 9 to 11.5 and 12.6 to 17, the most with loads in stages."""


@needs_triton
def test_kernels_match_plain_torch() -> None:
    checks = Path(__file__).with_name("interpreted_kernels.py")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(checks)]
    finished = subprocess.run(
        command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stdout


def choices(size: str) -> Any:
    from perceiver_dist.model.grid_kernels import CHOICES, WIDE_CHOICES

    return WIDE_CHOICES if size == "audioset_video" else CHOICES


def compiled(name: str, size: str, products: torch.dtype, choice: Any) -> tuple[KernelCode, float]:
    """Return the code of a kernel, and how many scores a thread computes at a time."""
    from perceiver_dist.model.kernels import backward, forward
    from perceiver_dist.model.kernels.layout import Layout

    kernel = {"attend": forward.attend, "attend_backward": backward.attend_backward}[name]
    layout = Layout(*SIZES[size], products)
    options = {
        **layout.token_options,
        "lead_chunk": layout.lead_chunk,
        "tile_latents": choice.tile_latents,
    }
    code = compile_kernel(kernel, options, choice.warps, choice.stages, choice.registers)
    return code, choice.tile_latents * layout.tile_columns / (32 * choice.warps)


@needs_triton
@pytest.mark.parametrize("name", ["attend", "attend_backward"])
@pytest.mark.parametrize("place", range(4))
def test_the_score_loop_is_short_and_stays_in_registers(name: str, place: int) -> None:
    choice = choices("imagenet")[place]
    code, scores = compiled(name, "imagenet", torch.bfloat16, choice)
    loop = code.score_loop()
    assert len(loop) / scores < MOST_INSTRUCTIONS[name]
    assert code.count(loop, "MUFU") == scores  # one exponential each
    assert not code.count(loop, "LDL") + code.count(loop, "STL")
    # Outside the loop the other choices may spill a little: the autotuner weighs it.
    assert code.registers <= (choice.registers or 255)
    assert place > 0 or code.spills() == 0


@needs_triton
@pytest.mark.parametrize("name", ["attend", "attend_backward"])
@pytest.mark.parametrize(
    ("size", "products"),
    [
        ("imagenet", torch.float32),
        ("default_image", torch.bfloat16),
        ("audioset_video", torch.bfloat16),
    ],
)
def test_kernels_use_tensor_cores_and_spill_nothing(name: str, size: str, products: torch.dtype) -> None:
    code, _ = compiled(name, size, products, choices(size)[0])
    assert code.count(code.score_loop(), "HGMMA") > 0
    assert code.spills() == 0


@needs_triton
@pytest.mark.parametrize("size", ["imagenet", "audioset_video"])
def test_the_other_kernels_spill_nothing(size: str) -> None:
    from perceiver_dist.model.grid_kernels import STATISTICS
    from perceiver_dist.model.kernels import combine, statistics, tokens
    from perceiver_dist.model.kernels.layout import Layout

    layout = Layout(*SIZES[size], torch.bfloat16)
    of_tokens = layout.token_options
    of_sums = {name: of_tokens[name] for name in ("tile_columns", "tail_width", "lead_width")}
    for_statistics = {**of_tokens, "tile_latents": STATISTICS["tile_latents"]}
    warps, stages = STATISTICS["num_warps"], STATISTICS["num_stages"]
    codes = [
        compile_kernel(statistics.sum_over_latents, for_statistics, warps, stages, None),
        compile_kernel(tokens.pack, of_tokens, 4, 3, None),
        *(
            compile_kernel(combine.combine, {**of_sums, "places": 8, "weighted": weighted}, 4, 3, None)
            for weighted in (False, True)
        ),
    ]
    assert [code.spills() for code in codes] == [0, 0, 0, 0]


@needs_triton
def test_what_sets_the_order_of_sums_is_the_same_for_every_choice() -> None:
    """The autotuner may choose differently after a restart, which must not change results."""
    from perceiver_dist.model import grid_kernels

    for kernels in (grid_kernels._attend, grid_kernels._attend_backward):
        for kernel in kernels.values():
            assert {name for config in kernel.configs for name in config.kwargs} == {"tile_latents"}
            assert len(kernel.configs) > 1


def test_only_fp32_on_cuda_is_computed_by_kernels() -> None:
    from perceiver_dist.model import separable

    assert not separable._has_kernels(torch.zeros(1, 1, 5))
    assert not separable._has_kernels(torch.zeros(1, 1, 5, device="meta"))


@needs_triton
def test_arguments_of_kernels_are_listed() -> None:
    from perceiver_dist.model import kernels
    from perceiver_dist.model.kernels import backward, combine, forward, statistics, tokens

    listed = set(re.findall(r"\w+", kernels.__doc__ or ""))
    for kernel in (
        forward.attend, backward.attend_backward, combine.combine, statistics.sum_over_latents, tokens.pack,
    ):  # fmt: skip
        assert set(kernel.arg_names) <= listed
