"""The path of a researcher as docs/own.md tells it, from a wheel, outside the repository."""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs" / "own.md").read_text(encoding="utf-8")


def section(name: str) -> str:
    return PAGE.partition(f"<!-- {name} -->")[2].partition(f"<!-- /{name} -->")[0]


def write_lab(folder: Path) -> None:
    """The files of the page, word for word."""
    blocks = re.findall(r"```\w+\n(.*?)```", section("lab"), re.DOTALL)
    names = (
        "norm/own_norm.yaml",
        "own_data.py",
        "data/blobs.yaml",
        "experiment/blobs.yaml",
        "scale/blobs.yaml",
        "table/own_table.yaml",
    )
    for name, text in zip(names, blocks, strict=True):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """A wheel of the repository, unpacked, with the command that it brings."""
    place = tmp_path_factory.mktemp("installed")
    source = place / "source"
    (source / "results").mkdir(parents=True)
    for name in ("pyproject.toml", "README.md", "LICENSE", "normlab", "conf", "hydra_plugins", "results/paper"):
        if (ROOT / name).exists():
            (source / name).symlink_to(ROOT / name)
    build = "import sys; from setuptools.build_meta import build_wheel; print(build_wheel(sys.argv[1]))"
    done = subprocess.run([sys.executable, "-c", build, str(place)], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(place / done.stdout.split()[-1]) as wheel:
        wheel.extractall(place / "lib")
    command = place / "bin" / "normlab"
    command.parent.mkdir()
    # -P: an installed command has no working folder on its path
    start = "import sys; from normlab.cli import main; sys.exit(main())"
    command.write_text(f"#!/bin/sh\nexec '{sys.executable}' -P -c '{start}' \"$@\"\n")
    command.chmod(0o755)
    shutil.rmtree(source)
    return place


@pytest.mark.long
def test_a_researcher_sweeps_an_own_norm_on_own_data_and_searches_with_optuna(installed, tmp_path):
    write_lab(tmp_path / "lab")
    environment = {
        **os.environ,
        "PYTHONPATH": str(installed / "lib"),
        "PATH": f"{installed / 'bin'}:{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "COLUMNS": "200",
    }
    said = []
    for command in section("commands").strip().removeprefix("```sh\n").removesuffix("```").strip().splitlines():
        done = subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stderr
        said.append(done.stdout + done.stderr)
    assert "4 finished" in said[0] and "Best value" in said[1]
    (found,) = (tmp_path / "results" / "sweeps").glob("*/optimization_results.yaml")
    assert "best_value" in found.read_text()
    for norm in ("own_norm", "sn"):
        assert len(re.findall(rf"blobs-digits_resnet-{norm}-4x2-s\d-\w{{8}}.*finished.*top1", said[2])) == 2, said[2]
    report = (tmp_path / "results" / "own_table-blobs" / "report.md").read_text()
    assert (
        "My norm beside SN" in report and "| **own** | blobs |" in report and "SN is ahead of SN without BN" in report
    )


@pytest.mark.long
def test_joblib_runs_the_cells_too(installed, tmp_path):
    write_lab(tmp_path / "lab")
    words = (
        "--config-dir lab +experiment=blobs norm=own_norm,bn tracker=none hydra/launcher=joblib hydra.launcher.n_jobs=2"
    )
    environment = {**os.environ, "PYTHONPATH": str(installed / "lib"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [str(installed / "bin" / "normlab"), "train", "-m", *words.split()],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0 and "2 finished" in done.stderr, done.stderr
