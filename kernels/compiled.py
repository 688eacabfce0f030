"""Compiles every Triton kernel ahead of time, without a GPU; records registers, spills and shared memory.

    python -m spoor.kernels.compiled --write     all kernels (some minutes), to kernels/compiled.json
    python -m spoor.kernels.compiled --kernels dcat_attention_fwd_kernel --targets sm_90 --types fp16 --heads 64

One row per kernel, type, head and target (hashed_gather: layout and group of floats for type and head): tiles,
registers, spilled bytes, shared memory and the target's limit of it. Kernels and launches (kernels/launch.py) are
those of production. Nothing runs here: tests check the results in Triton's interpreter and on a GPU, if there is one.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, get_args

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from spoor.kernels.dcat_attention import triton as dcat
from spoor.kernels.hashed_gather import triton as gather
from spoor.kernels.hashed_gather.layouts import GROUP, Layout
from spoor.kernels.jagged_attention import triton as jagged
from spoor.kernels.launch import Launch, choose_launch

RESULT = Path(__file__).parent / "compiled.json"
# Limit of shared memory per block, in bytes: CUDA C programming guide, compute capabilities; LDS of CDNA 3.
TARGETS = {
    "sm_80": (GPUTarget("cuda", 80, 32), 163 * 1024),
    "sm_90": (GPUTarget("cuda", 90, 32), 227 * 1024),
    "sm_100": (GPUTarget("cuda", 100, 32), 227 * 1024),
    "gfx942": (GPUTarget("hip", "gfx942", 64), 64 * 1024),
}
HEAD_DIMS = (32, 64, 128)
TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
KERNELS: dict[str, Any] = {
    kernel.fn.__name__: kernel
    for kernel in (
        jagged.jagged_attention_fwd_kernel,
        jagged.jagged_attention_bwd_dq_kernel,
        jagged.jagged_attention_bwd_dkv_kernel,
        dcat.dcat_attention_fwd_kernel,
        dcat.dcat_attention_bwd_candidates_kernel,
        dcat.dcat_attention_bwd_context_kernel,
        gather.hashed_gather_kernel,
    )
}
GATHER = gather.hashed_gather_kernel.fn.__name__
LAYOUTS: tuple[Layout, ...] = get_args(Layout)
_FLOAT32 = ("log_sum", "inner")  # arguments that are float32 for tensors of any type
_INT64 = ("offsets", "tile_", "order", "first_seen")


@dataclass(frozen=True)
class Compiled:
    kernel: str
    dtype: str
    head_dim: int
    target: str
    block_m: int
    block_n: int
    warps: int
    registers: int  # per thread
    spilled_bytes: int  # per thread
    shared_bytes: int  # per block
    shared_limit: int


def compile_all(
    *,
    kernels: Collection[str],
    types: Collection[str] = tuple(TYPES.values()),
    heads: Collection[int] = HEAD_DIMS,
    targets: Collection[str] = tuple(TARGETS),
) -> Iterator[Compiled]:
    """Compiles these kernels in every configuration for these targets."""
    for name in kernels:
        if name == GATHER:
            for layout in LAYOUTS:
                for target in targets:
                    yield _compile_gather(layout, target)
            continue
        for dtype in (dtype for dtype, called in TYPES.items() if called in types):
            for head_dim in heads:
                for target in targets:
                    yield _compile(KERNELS[name], dtype, launch_of(name, dtype, head_dim, target), target)


def launch_of(kernel: str, dtype: torch.dtype, head_dim: int, target: str) -> Launch:
    """The launch of a kernel on a target."""
    launch = choose_launch(dtype, head_dim, amd=TARGETS[target][0].backend == "hip")
    return launch if "_fwd_" in kernel else launch.backward or launch


def _compile(kernel: Any, dtype: torch.dtype, launch: Launch, target: str) -> Compiled:
    constants: dict[str, Any] = {**launch.constants, "IN_STORAGE_TYPE": dtype != torch.float32}
    if "CAUSAL" in kernel.arg_names:
        constants["CAUSAL"] = True
    types = {name: _type(name, TYPES[dtype]) for name in kernel.arg_names if name not in constants}
    return _build(kernel, constants, types, launch.options, target, called=(TYPES[dtype], launch.head_dim))


def _compile_gather(layout: Layout, target: str) -> Compiled:
    kernel, constants = gather.hashed_gather_kernel, gather.constants(GROUP, layout)
    types = {"packed": "*u8", "rows": "*i64", "out": "*fp32", "groups": "i32", "parts": "i32"}
    return _build(kernel, constants, types, {"num_warps": gather.WARPS}, target, called=(layout, GROUP))


def _build(
    kernel: Any,
    constants: dict[str, Any],
    types: dict[str, str],
    options: dict[str, Any],
    target: str,
    *,
    called: tuple[str, int],
) -> Compiled:
    signature = {name: "constexpr" if name in constants else types[name] for name in kernel.arg_names}
    # As at a launch: tensors are aligned to 16 bytes, and the strides of whole heads are multiples of 16.
    aligned = [
        place for place, name in enumerate(kernel.arg_names) if signature[name].startswith("*") or "stride" in name
    ]
    attributes = {(place,): [["tt.divisibility", 16]] for place in aligned}
    source = ASTSource(fn=kernel, signature=signature, constexprs=constants, attrs=attributes)
    gpu, limit = TARGETS[target]
    binary = triton.compile(source, target=gpu, options=options)
    usage = _of_nvidia(binary.asm["cubin"]) if gpu.backend == "cuda" else _of_amd(binary.asm["amdgcn"])
    return Compiled(
        kernel=kernel.fn.__name__,
        dtype=called[0],
        head_dim=called[1],
        target=target,
        block_m=constants["BLOCK_M"],
        block_n=constants.get("BLOCK_N", constants["BLOCK_D"]),
        warps=options["num_warps"],
        registers=usage[0],
        spilled_bytes=usage[1],
        shared_bytes=binary.metadata.shared,
        shared_limit=limit,
    )


def _type(name: str, dtype: str) -> str:
    """The type of an argument, by its name. Strides below 2^31 elements are int32; row numbers are always int64."""
    if name == "heads" or "stride" in name:
        return "i32"
    if name == "scale":
        return "fp32"
    if name in _FLOAT32:
        return "*fp32"
    return "*i64" if name.startswith(_INT64) or name.endswith("offsets") else f"*{dtype}"


def _of_nvidia(cubin: bytes) -> tuple[int, int]:
    """Registers and spilled bytes per thread, from the resource usage in the machine code."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [knobs.nvidia.cuobjdump.path, "-res-usage", file.name]
        text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    registers, stack, local = (int(re.search(rf"{name}:(\d+)", text)[1]) for name in ("REG", "STACK", "LOCAL"))  # type: ignore[index]
    return registers, stack + local


def _of_amd(assembly: str) -> tuple[int, int]:
    """Vector registers and bytes of scratch memory; scalar registers spill to vector registers, not to memory."""
    registers, scratch = (
        int(re.search(rf"\.{name}:\s+(\d+)", assembly)[1])  # type: ignore[index]
        for name in ("vgpr_count", "private_segment_fixed_size")
    )
    return registers, scratch


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m spoor.kernels.compiled", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--kernels", nargs="+", choices=KERNELS, default=list(KERNELS))
    parser.add_argument("--types", nargs="+", choices=TYPES.values(), default=list(TYPES.values()))
    parser.add_argument("--heads", nargs="+", type=int, choices=HEAD_DIMS, default=list(HEAD_DIMS))
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=list(TARGETS))
    parser.add_argument("--write", action="store_true", help=f"the rows to {RESULT.name}")
    parser.add_argument("--json", action="store_true", help="one JSON object on stdout")
    options = parser.parse_args()
    rows = []
    for row in compile_all(kernels=options.kernels, types=options.types, heads=options.heads, targets=options.targets):
        rows.append(asdict(row))
        print(*rows[-1].values(), file=sys.stderr)
    text = "{\n" + f'"triton": {json.dumps(triton.__version__)},\n"rows": [\n'
    text += ",\n".join(json.dumps(row) for row in rows) + "\n]\n}\n"
    if options.write:
        RESULT.write_text(text, encoding="utf-8")
    if options.json:
        print(text)


if __name__ == "__main__":
    main()
