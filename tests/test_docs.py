"""Documents name what exists: files, commands and options."""

import re
from pathlib import Path

import click
import pytest

from benchmarks import roofline
from spoor.cli import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page: Path):
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_options_exist(page: Path):
    lines = re.findall(r"^\$? ?spoor (.+)$|`spoor ([^`]+)`", page.read_text(), re.MULTILINE)
    for words in ((a or b).split("#")[0].replace("|", " ").split() for a, b in lines):
        command: click.Command = app
        for word in words:
            if isinstance(command, click.Group) and word in command.commands:
                command = command.commands[word]
            elif word.startswith("--"):
                known = {option for parameter in command.params for option in parameter.opts + parameter.secondary_opts}
                known |= {option for parameter in app.params for option in parameter.opts} | {"--help"}
                assert word in known, f"{' '.join(words)}: {word}"
        assert command is not app or words[0].startswith("-"), words


def test_every_command_is_documented():
    text = "\n".join(page.read_text() for page in PAGES)
    for name in app.commands:
        assert f"spoor {name}" in text, name


def test_the_roofline_page_holds_the_tables_of_its_model():
    text = roofline.PAGE.read_text()
    assert roofline.page(text) == text, "run `python -m benchmarks.roofline --write`"


def test_a_crossing_pass_counts_the_context_once_and_copies_count_it_for_each_candidate():
    crossed, (copy, attended) = roofline.crossing(2, 64), roofline.copied(2, 64)
    context = 2 * 256 * 2 * 256 * 2  # users, events, keys and values, floats, bytes
    assert copy.bytes == context + 64 * context and attended.bytes > 64 * context
    assert context < crossed.bytes < 2 * context
    assert crossed.flops == attended.flops
