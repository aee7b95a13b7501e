"""Tests of the Triton kernels without a GPU: results in Triton's interpreter, and compilation for an H100.

Triton reads TRITON_INTERPRET when it is imported, so the interpreter runs in a process of its own.
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="comes with torch for CUDA")


@needs_triton
def test_kernels_match_plain_torch() -> None:
    checks = Path(__file__).with_name("interpreted_kernels.py")
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(checks)]
    finished = subprocess.run(
        command, env={**os.environ, "TRITON_INTERPRET": "1"}, capture_output=True, text=True
    )
    assert finished.returncode == 0, finished.stdout


@needs_triton
@pytest.mark.parametrize("kernel", ["_forward", "_backward", "_statistics"])
def test_kernels_compile_for_an_h100(kernel: str) -> None:
    """Compile at the paper's ImageNet setting, which needs neither a GPU nor a driver."""
    from triton import compiler
    from triton.backends.compiler import GPUTarget

    from perceiver_dist.model import grid_kernels

    function = getattr(grid_kernels, kernel)
    sizes = grid_kernels.tiles(columns=224, channels=5)
    options = {"num_warps": sizes.pop("num_warps")}
    counts = dict.fromkeys(("latents", "rows", "columns", "channels"), "i32")
    kinds = counts | dict.fromkeys(sizes, "constexpr")
    source = compiler.ASTSource(
        fn=function,
        signature={name: kinds.get(name, "*fp32") for name in function.arg_names},
        constexprs={(function.arg_names.index(name),): size for name, size in sizes.items()},
    )
    assert compiler.compile(source, target=GPUTarget("cuda", 90, 32), options=options).asm["cubin"]
