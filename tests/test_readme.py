"""What README says is true: its numbers are those of the records, its commands and links exist."""

import re
import subprocess
from pathlib import Path

from page_scripts import script

from normlab.cli.commands import command_line

VERBS = command_line().commands

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_table_is_made_from_the_records():
    made = script("readme_results")
    assert f"{made.START}\n{made.table()}\n{made.END}" in README


def test_the_page_of_results_is_made_from_the_records():
    made = script("results_page")
    page = made.PAGE.read_text(encoding="utf-8")
    assert made.filled(page) == page


def test_links_and_figures_exist():
    for text in (ROOT.glob("*.md"), ROOT.glob("docs/*.md"), ROOT.glob("results/*.md")):
        for file in text:
            for link in re.findall(r"\]\(([^)#]+)\)", file.read_text(encoding="utf-8")):
                if not link.startswith("http"):
                    assert (file.parent / link).exists(), f"{file.name}: {link}"


def test_what_the_guides_point_at_is_there():
    """`path.py` exists, and `path.py` `name` defines the name: people and programs find things by these pages."""
    pages = (
        "README.md",
        "CONTRIBUTING.md",
        "docs/architecture.md",
        "docs/extending.md",
        "docs/library.md",
        "docs/gpu.md",
    )
    for page in map(ROOT.joinpath, pages):
        text = page.read_text(encoding="utf-8")
        for path, name in re.findall(r"`([\w/]+\.(?:py|h|cpp))`(?: `([\w.]+)`)?", text):
            files = [f for root in (ROOT, ROOT / "normlab", ROOT / "tests") for f in root.glob(f"**/{path}")]
            files = [file for file in files if ".venv" not in file.parts]
            assert files, f"{page.name}: {path}"
            last = name.rpartition(".")[2]
            defines = re.compile(rf"^ *(?:def|class) {last}\b|^{last}\b.* = ", re.MULTILINE)
            assert not name or any(defines.search(f.read_text()) for f in files), f"{page.name}: {path} {name}"


def test_commands_exist():
    for verb in re.findall(r"^\s*normlab (\w+)", README, re.MULTILINE):
        assert verb in VERBS, verb
    targets = set(re.findall(r"^([a-z0-9-]+):.*##", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for target in re.findall(r"(?:^    |`)make ([a-z0-9-]+)", README, re.MULTILINE):
        assert target in targets, target
    listed = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert all(f"make {target}" in listed for target in targets)
