"""Machine code of a Triton kernel for compute capability 9.0, which needs neither a GPU nor a driver."""

import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

COUNTS = ("latents", "rows", "columns", "channels", "lead_channels", "tiles", "pieces", "rows_per_piece")
"""Arguments that kernels get at run time; all others that are not compiled in are arrays."""
PACKED = ("tail", "lead", "lead_query", "lead_grad")
"""Arrays of bfloat16; all others are fp32."""


@dataclass(frozen=True)
class KernelCode:
    """Machine code of a kernel.

    Attributes:
        registers: Registers per thread.
        instructions: The instructions, without their addresses.
        loops: First and last instruction of each loop.
    """

    registers: int
    instructions: list[str]
    loops: list[tuple[int, int]]

    def spills(self) -> int:
        """Return the number of instructions that move registers to and from memory."""
        return self.count(self.instructions, "LDL") + self.count(self.instructions, "STL")

    def score_loop(self) -> list[str]:
        """Return the instructions of the innermost loop that computes exponentials of matrix products."""
        bodies = [self.instructions[first : last + 1] for first, last in self.loops]
        fitting = [body for body in bodies if self.count(body, "MUFU") and self.count(body, "HGMMA")]
        return min(fitting, key=len)

    @staticmethod
    def count(instructions: list[str], name: str) -> int:
        """Return how many instructions have this name, whatever their suffixes and predicates."""
        names = Counter(re.sub(r"^@!?U?P\w+\s+", "", text).split()[0].split(".")[0] for text in instructions)
        return names[name]


def compile_kernel(
    kernel: Any, options: Mapping[str, int], warps: int, stages: int, registers: int | None
) -> KernelCode:
    """Compile for an H100, with sizes divisible by 16.

    Args:
        kernel: The Triton function.
        options: Its compile-time arguments.
        warps: Warps of a program.
        stages: Stages of loads.
        registers: Most registers per thread; None for the assembler's choice.
    """
    from triton import compiler
    from triton.backends.compiler import GPUTarget

    def kind(name: str) -> str:
        if name in options:
            return "constexpr"
        return "i32" if name in COUNTS else "*bf16" if name in PACKED else "*fp32"

    kinds = {name: kind(name) for name in kernel.arg_names}
    aligned = [name for name in kinds if kinds[name].startswith("*") or name in ("latents", "rows")]
    source = compiler.ASTSource(
        fn=kernel,
        signature=kinds,
        constexprs={(kernel.arg_names.index(name),): size for name, size in options.items()},
        attrs={(kernel.arg_names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    chosen = {"num_warps": warps, "num_stages": stages, "maxnreg": registers}
    compiled = compiler.compile(source, target=GPUTarget("cuda", 90, 32), options=chosen)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        report = _run("cuobjdump", "-res-usage", file.name)
        instructions, loops = _parse(_run("nvdisasm", "-c", file.name))
    found = re.search(r"REG:(\d+)", report)
    assert found, report
    return KernelCode(int(found[1]), instructions, loops)


def _run(tool: str, *arguments: str) -> str:
    """Return the output of a tool that comes with Triton."""
    from triton.backends import nvidia

    path = Path(str(nvidia.__file__)).with_name("bin") / tool
    return subprocess.run([path, *arguments], capture_output=True, text=True, check=True).stdout


def _parse(disassembly: str) -> tuple[list[str], list[tuple[int, int]]]:
    """Return the instructions and the loops: branches back to a label."""
    labels: dict[str, int] = {}
    instructions: list[str] = []
    for line in disassembly.splitlines():
        if label := re.match(r"\s*(\.L_\w+):", line):
            labels[label[1]] = len(instructions)
        elif instruction := re.match(r"\s*/\*[0-9a-f]+\*/\s+(.*?);", line):
            instructions.append(instruction[1])
    loops = []
    for place, text in enumerate(instructions):
        target = re.search(r"\bBRA\b.*(\.L_\w+)", text)
        # A jump of a program's end to itself is padding.
        if target and labels.get(target[1], place) < place:
            loops.append((labels[target[1]], place))
    return instructions, loops
