"""Machine code for GPUs that are not here: the committed table holds, and kernels still compile to what it says."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import triton

from spoor.kernels.compiled import GATHER, HEAD_DIMS, LAYOUTS, RESULT, TARGETS, TYPES, launch_of
from spoor.kernels.hashed_gather.layouts import GROUP

ROOT = Path(__file__).parents[2]
TABLE = json.loads(RESULT.read_text())
ATTENTION = [row for row in TABLE["rows"] if row["kernel"] != GATHER]
KERNELS = {row["kernel"] for row in ATTENTION}


def test_the_table_covers_every_kernel_type_head_and_target() -> None:
    found = {(row["kernel"], row["dtype"], row["head_dim"], row["target"]) for row in TABLE["rows"]}
    attention = {(k, t, d, g) for k in KERNELS for t in TYPES.values() for d in HEAD_DIMS for g in TARGETS}
    assert found == attention | {(GATHER, layout, GROUP, target) for layout in LAYOUTS for target in TARGETS}
    assert len(KERNELS) == 6


def test_nothing_spills_and_shared_memory_suffices() -> None:
    for row in TABLE["rows"]:
        assert row["spilled_bytes"] == 0, row
        assert row["shared_bytes"] <= row["shared_limit"], row


def test_the_table_was_made_with_the_tiles_that_are_launched() -> None:
    types = {name: dtype for dtype, name in TYPES.items()}
    for row in ATTENTION:
        launch = launch_of(row["kernel"], types[row["dtype"]], row["head_dim"], row["target"])
        assert (row["block_m"], row["block_n"], row["warps"]) == (launch.block_m, launch.block_n, launch.warps), row


@pytest.mark.parametrize("target", ["sm_90", "gfx942"])
@pytest.mark.parametrize("kernel", ["jagged_attention_bwd_dkv_kernel", "dcat_attention_fwd_kernel", GATHER])
def test_kernels_compile_to_what_the_table_says(kernel: str, target: str) -> None:
    """In a process of its own: the interpreter, which other tests need, is chosen where a kernel is defined."""
    environ = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "spoor.kernels.compiled", "--json", "--targets", target, "--kernels", kernel]
    command += ["--types", "fp16", "--heads", "64"]
    done = subprocess.run(command, cwd=ROOT, env=environ, check=True, capture_output=True, text=True)
    compiled = json.loads(done.stdout)["rows"]
    assert compiled
    for found in compiled:
        assert found["spilled_bytes"] == 0 and found["shared_bytes"] <= found["shared_limit"]
        if TABLE["triton"] == triton.__version__:
            assert found in TABLE["rows"]
