"""The wheel: what is in it, what it says of itself, and that it works where no repository is."""

import json
import os
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
import yaml

from normlab import __version__
from normlab.config import identity, load

SOURCE = Path(__file__).resolve().parents[1]
BUILD = "import sys; from setuptools.build_meta import build_wheel; print(build_wheel(sys.argv[1]))"


def run(command: list[str | Path], cwd: Path, **environment: str) -> str:
    """Its output; without what would let Python find the repository."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | environment
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    """Made of what git has, in a folder of its own, where setuptools leaves what it leaves."""
    out, source = tmp_path_factory.mktemp("wheel"), tmp_path_factory.mktemp("source")
    (source / "results").mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "normlab", "conf", "hydra_plugins", "results/paper"):
        (source / name).symlink_to(SOURCE / name)
    return out / run([sys.executable, "-c", BUILD, out], source).split()[-1]


@pytest.fixture(scope="module")
def metadata(wheel) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode())


def test_it_holds_all_that_runs(wheel):
    def files(root: Path, *patterns: str) -> set[str]:
        found = {path.relative_to(root).as_posix() for pattern in patterns for path in root.rglob(pattern)}
        return {name for name in found if "__pycache__" not in name}

    kinds = ("*.py", "*.cpp", "*.h", "py.typed", "*.html", "*.css", "*.js")
    code = {f"normlab/{name}" for name in files(SOURCE / "normlab", *kinds)}
    conf = {f"normlab/conf/{name}" for name in (*files(SOURCE / "conf", "*.yaml"), "__init__.py")}
    papers = {f"normlab/paper/{name}" for name in files(SOURCE / "results" / "paper", "*.yaml")}
    plugins = {f"hydra_plugins/{name}" for name in files(SOURCE / "hydra_plugins", "*.py")}
    assert all((code, conf, papers, plugins)) and "normlab/py.typed" in code
    with zipfile.ZipFile(wheel) as archive:
        found = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert found == code | conf | papers | plugins


def test_it_says_what_it_is(wheel, metadata):
    assert (metadata["Name"], metadata["Version"], metadata["License-Expression"]) == (
        "normlab",
        __version__,
        "Apache-2.0",
    )
    assert metadata["Author"] and metadata["Keywords"] and metadata["Requires-Python"] == ">=3.11"
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith("licenses/LICENSE"))
        assert archive.read(name) == (SOURCE / "LICENSE").read_bytes()


def test_the_citation_is_of_this_version():
    cited = yaml.safe_load((SOURCE / "CITATION.cff").read_text())
    project = tomllib.loads((SOURCE / "pyproject.toml").read_text())["project"]
    assert cited["cff-version"] == "1.2.0" and {"message", "title", "authors"} <= cited.keys()
    assert (cited["version"], cited["license"]) == (project["version"], project["license"])
    assert [author["name"] for author in cited["authors"]] == [author["name"] for author in project["authors"]]
    assert project["version"] == __version__


def test_it_runs_outside_the_repository(wheel, tmp_path):
    installed = tmp_path / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    script = (
        "import json, normlab.config as c; "
        "print(json.dumps([c.__path__[0], str(c.conf_dir()), c.identity(c.load(['norm=hn', 'batch=4x4']))]))"
    )
    module, conf, run_id = json.loads(run([sys.executable, "-c", script], tmp_path, PYTHONPATH=str(installed)))
    assert Path(module).parent == Path(conf).parent == installed / "normlab"
    assert run_id == identity(load(["norm=hn", "batch=4x4"]))


SCRIPT = (SOURCE / "docs" / "library.md").read_text(encoding="utf-8").partition("```python\n")[2].partition("```")[0]
RELOAD = "import sys, torch; torch.export.load('model.pt2').module(); print('normlab' in sys.modules)"


@pytest.mark.long
def test_the_script_of_the_page_runs_where_it_is_installed(wheel, tmp_path):
    """An environment with the wheel, a folder elsewhere, the page's words. torch and the like are those of this one."""
    environment, elsewhere = tmp_path / "environment", tmp_path / "elsewhere"
    elsewhere.mkdir()
    run([sys.executable, "-m", "venv", "--without-pip", environment], tmp_path)
    python = environment / "bin" / "python"
    install = [
        sys.executable,
        "-m",
        "pip",
        "--python",
        python,
        "install",
        "--no-compile",
        "--no-deps",
        "--no-index",
        wheel,
    ]
    run(install, tmp_path)
    packages = Path(run([python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"], tmp_path).strip())
    (packages / "others.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    assert "Switchable Normalization" in run([environment / "bin" / "normlab", "list", "norms"], elsewhere)
    where = run([python, "-c", "import normlab; print(normlab.__file__)"], elsewhere)
    assert Path(where.strip()).parent == packages / "normlab"
    (elsewhere / "path.py").write_text(SCRIPT)
    assert "% of 300 images" in run([python, "path.py"], elsewhere)
    assert run([python, "-c", RELOAD], elsewhere).strip() == "False"
