"""Numbers in messages are for people: no powers of ten."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from tests.spoor.test_hints import ROOMS, ROOT


def scientific(path: Path) -> Iterator[str]:
    """Places where an f-string may write a number as 1.257e+05. What a reader is to type in is no number for people:
    `--every 24h`."""
    for node in ast.walk(ast.parse(path.read_text())):
        before = ""
        for part in node.values if isinstance(node, ast.JoinedStr) else ():
            spec = ast.unparse(part.format_spec) if isinstance(part, ast.FormattedValue) and part.format_spec else ""
            if re.search(r"[gGeE]['\"]?$", spec.rstrip("'\"")) and not re.search(r"--[a-z-]+ $", before):
                yield f"{path.relative_to(ROOT)}:{part.lineno}: {ast.unparse(part)}"
            before = part.value if isinstance(part, ast.Constant) and isinstance(part.value, str) else ""


def test_the_search_finds_what_it_is_for(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("tests.spoor.test_numbers.ROOT", tmp_path)
    module = tmp_path / "module.py"
    module.write_text('f"events {n:.4g}, {n:,}, {n:.1f} and --every {n:g}h"')
    assert [found.partition(" ")[2] for found in scientific(module)] == ["{n:.4g}"]


def test_no_message_writes_a_number_in_powers_of_ten():
    files = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py")) if path.name != "numbers.py"]
    assert [found for path in files for found in scientific(path)] == []
