"""Pages of docs/: what is made is up to date, the tutorial's commands run, the site builds."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from page_scripts import script

ROOT = Path(__file__).resolve().parents[1]


def test_the_settings_page_is_what_conf_and_signatures_say():
    made = script("settings_page")
    assert made.PAGE.read_text(encoding="utf-8") == made.page(), "run scripts/settings_page.py"


def test_every_setting_has_a_meaning():
    page = script("settings_page").page()
    assert not re.findall(r"^\| `[\w.]+` .*\|  \|$", page, re.MULTILINE)
    for key, words in script("settings_page").USUAL.items():
        assert re.search(rf"^\| `{re.escape(key)}` .*\| {re.escape(words)} \|$", page, re.MULTILINE), (
            f"{key} is not used"
        )


def blocks(page: str) -> list[tuple[str | None, str]]:
    """The blocks of a page in order: (file, its text), or (None, commands)."""
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    found: list[tuple[str | None, str]] = []
    for name, kind, body in re.findall(r"(?:^`([\w/.]+)`:\n\n)?^```(\w+)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        if name or kind == "sh":
            found.append((name or None, body))
    return found


@pytest.mark.long
def test_the_tutorial_is_what_happens(tmp_path):
    """Every file that it shows is written, every command runs, in its order, in an empty folder."""
    (tmp_path / "bin").mkdir()
    command = tmp_path / "bin" / "normlab"
    command.write_text(f"#!/bin/sh\nexec '{sys.executable}' -P -m normlab \"$@\"\n")
    command.chmod(0o755)
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "PATH": f"{command.parent}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "WANDB_MODE": "offline",
    }
    place = tmp_path / "work"
    place.mkdir()
    ran = 0
    for name, body in blocks("tutorial.md"):
        if name is not None:
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            (place / name).write_text(body)
            continue
        for line in body.strip().splitlines():
            done = subprocess.run(
                ["bash", "-c", line], cwd=place, env=environment, capture_output=True, text=True, timeout=900
            )
            assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
            ran += 1
    assert ran > 10


def test_the_pages_are_a_site(tmp_path):
    """Built as `make docs` does; a link that leads nowhere is an error."""
    pytest.importorskip("mkdocs")
    built = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path / "site")],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert built.returncode == 0, built.stdout + built.stderr
    for page in (ROOT / "docs").glob("*.md"):
        assert (tmp_path / "site" / f"{page.stem}.html").is_file()
