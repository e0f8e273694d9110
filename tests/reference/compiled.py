"""What a Triton kernel becomes on a GPU that need not be there."""

import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@dataclass(frozen=True)
class Compiled:
    """Resources of one kernel."""

    shared_bytes: int
    spilled_bytes: int  # of registers, to the stack


def compiled(
    kernel: Any,
    types: list[str],
    constants: dict[str, int],
    options: dict[str, int],
    capability: int,
) -> Compiled:
    """Compile `kernel` for a compute capability; pointers and numbers divisible by 16."""
    names = kernel.arg_names
    given = dict(zip(names, types, strict=False))
    signature = {name: given.get(name, "constexpr") for name in names}
    places = {(names.index(name),): value for name, value in constants.items()}
    divisible = {(index,): [["tt.divisibility", 16]] for index in range(len(types))}
    source = ASTSource(kernel, signature, places, divisible)
    found = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(found.asm["cubin"])
        file.flush()
        usage = subprocess.run(
            [tool, "-res-usage", file.name], capture_output=True, text=True, check=True
        )
    stack = re.search(r"STACK:(\d+)", usage.stdout)
    assert stack is not None, usage.stdout
    return Compiled(shared_bytes=found.metadata.shared, spilled_bytes=int(stack.group(1)))
