"""Runs that are killed, and checkpoints that are damaged: nothing is lost, and if it were, the chaos would say so.

`make test-long` runs the long ones; docs/reliability.md has their figures.
"""

import json
import shutil
import time
from pathlib import Path

import pytest
import torch
from page_scripts import script
from sealed import rewrite

from normlab.cli import main
from normlab.doctor.attempts import Server
from normlab.doctor.chaos import Proof, chaos
from normlab.doctor.compare import differences, missing_or_repeated, unequal
from normlab.doctor.damage import OF_STOPPED, Damage
from normlab.doctor.kills import Kill
from normlab.doctor.readers import READERS
from normlab.doctor.twice import Twice
from normlab.doctor.watch import PHASES
from normlab.runs.folder import RunFolder

HERE = Path(__file__).parent


def prove(out: Path, **settings: int) -> dict:
    """The report of a proof in which nothing was lost."""
    words = [f"{key}={value}" for key, value in settings.items()]
    status = main(["doctor", "--chaos", *words, f"out={out}"])
    report = json.loads((out / "report.json").read_text())
    assert (status, report["lost"], report["verdict"]) == (0, [], "nothing was lost")
    assert len(report["kills"]) == settings["kills"] and all(kill["run"] for kill in report["kills"])
    assert all(damage["named"] or damage["unchanged"] for damage in report["damages"])
    assert [path.name for path in out.iterdir()] == ["report.json"]
    return report


def test_a_run_killed_at_twenty_moments_loses_nothing(tmp_path, capsys):
    seed = int(time.time()) % 10**6
    report = prove(tmp_path / "out", kills=20, writes=10, damages=1, twice=0, seed=seed)
    assert f"seed={seed}" in capsys.readouterr().err
    phases = {kill["phase"] for kill in report["kills"]}
    assert len(phases) >= 4 and phases <= set(PHASES)
    assert sum(kill["status"] == -9 for kill in report["kills"]) >= 18  # one may end by itself at that moment
    assert any(kill["inside"] for kill in report["writes"])


@pytest.mark.long
@pytest.mark.parametrize("part", range(4))
def test_three_hundred_kills(tmp_path, part):
    prove(tmp_path / "out", kills=75, writes=0, damages=0, twice=0, seed=part)


@pytest.mark.long
def test_two_hundred_kills_while_checkpoints_are_written(tmp_path):
    prove(tmp_path / "out", kills=0, writes=200, damages=0, twice=0)


@pytest.mark.long
@pytest.mark.parametrize("part", range(4))
def test_a_hundred_truncations_and_a_hundred_bit_flips(tmp_path, part):
    report = prove(tmp_path / "out", kills=0, writes=0, damages=25, twice=0, seed=part)
    assert {damage["file"] for damage in report["damages"]} == {*OF_STOPPED, *READERS}


@pytest.mark.long
def test_sweeps_and_tables_typed_twice_at_once(tmp_path):
    prove(tmp_path / "out", kills=0, writes=0, damages=0, twice=4)


@pytest.mark.long
@pytest.mark.parametrize(("ranks", "workers"), [(1, 2), (2, 0), (2, 2), (3, 0), (4, 0)])
def test_kills_of_ranks_and_of_loader_workers(tmp_path, ranks, workers):
    """One process of several is killed too: the others end, and the same command goes on."""
    report = prove(tmp_path / "out", kills=10, writes=0, damages=0, twice=0, ranks=ranks, workers=workers)
    assert len({kill["victim"] for kill in report["kills"]}) > 2


# ---- it can fail -----------------------------------------------------------------------------------------------------


def test_what_is_lost_is_found(tmp_path, monkeypatch, capsys):
    """With checkpoints written in place, and rows that stay although their updates are done again."""
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    proof = Proof.draw(seed=0, ranks=1, workers=0, kills=0, writes=10, damages=0, twice=0)
    proof.kills = [Kill("updates", 1, share, "everything", last=True) for share in (0.3, 0.5, 0.7)]
    assert chaos(proof, tmp_path, tmp_path / "report.json", server="toy_losing") == 1
    report = json.loads((tmp_path / "report.json").read_text())
    assert report["verdict"] == "something was lost"
    assert any("metrics.jsonl: the rows of the updates" in line for line in report["lost"])
    assert any("cannot be loaded" in line for line in report["lost"])
    assert "something was lost" in capsys.readouterr().out
    kept = [path.name for path in next(tmp_path.glob("runs-*")).iterdir()]
    assert "uninterrupted" in kept and any(name.startswith("write") for name in kept)


@pytest.mark.long
def test_damage_that_nobody_names_is_found_and_so_are_records_that_another_command_loses(tmp_path, monkeypatch):
    """With digests that nobody looks at, and a table's records that lack the last one."""
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    proof = Proof.draw(seed=0, ranks=1, workers=0, kills=0, writes=0, damages=0, twice=0)
    proof.damages = [Damage("truncation", 0.5, 0, "metrics.jsonl"), Damage("bit flip", 0.5, 6, "ratios.jsonl")]
    proof.twice = [Twice("table", 0.0)]
    assert chaos(proof, tmp_path, tmp_path / "report.json", server="toy_losing") == 1
    lost = json.loads((tmp_path / "report.json").read_text())["lost"]
    assert any("of metrics.jsonl `figure learning_curves" in line for line in lost)
    assert any("plain bn_8x2 seed 1 is missing" in line for line in lost)


def test_processes_that_are_left_behind_are_found_and_ended(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(HERE))
    with Server("toy_losing") as server:
        attempt = server.start(["leave"], tmp_path / "log.txt")
        assert attempt.ended(60)
        assert (attempt.status, attempt.left, attempt.orphans) == (3, 1, 1)
        attempt = server.start(["--version"], tmp_path / "log.txt", typed=True)
        assert attempt.ended(60)
        assert (attempt.status, attempt.left, attempt.orphans) == (0, 0, 0)
    assert (tmp_path / "log.txt").read_text().startswith("normlab ")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> RunFolder:
    out = tmp_path_factory.mktemp("runs")
    settings = ["iterations=4", "batch=4x4", "model.width=4", "data.fraction=0.1", "ratios_every=2", "tracker=none"]
    assert main(["train", *settings, f"out={out}"]) == 0
    return RunFolder(next(out.iterdir()))


CHANGES = {
    "a row twice": ("metrics.jsonl", lambda old: old + old.splitlines(keepends=True)[-1]),
    "a row less": ("ratios.jsonl", lambda old: b"".join(old.splitlines(keepends=True)[:-1])),
    "another weight": ("checkpoints/weights.safetensors", lambda old: old[:-1] + bytes([old[-1] ^ 1])),
    "another summary": ("summary.json", lambda old: old.replace(b'"updates": 4', b'"updates": 5')),
    "another setting": ("run.json", lambda old: old.replace(b'"4x4"', b'"4x5"')),
    "a temporary file": ("checkpoints/.000004.pt.0.tmp", lambda old: b""),
}


@pytest.mark.parametrize("change", CHANGES)
def test_any_change_of_a_run_is_a_difference(finished, tmp_path, change):
    copy = RunFolder(Path(shutil.copytree(finished.path, tmp_path / "copy")))
    rewrite(copy.summary_file, lambda summary: summary.update(seconds=summary["seconds"] + 1))
    assert differences(finished, copy) == []
    name, edit = CHANGES[change]
    file = copy.path / name
    file.write_bytes(edit(file.read_bytes() if file.exists() else b""))
    assert [line.partition(":")[0] for line in differences(finished, copy)] == [name]


def test_steps_are_counted(finished, tmp_path):
    assert missing_or_repeated(finished, 4, 1) == []
    assert len(missing_or_repeated(finished, 5, 2)) == 2
    copy = RunFolder(Path(shutil.copytree(finished.path, tmp_path / "copy")))
    copy.ratios.write_bytes(copy.ratios.read_bytes() * 2)
    assert missing_or_repeated(copy, 4, 1) == ["ratios.jsonl: the rows are those of the updates [0, 2, 4, 0, 2, 4]"]


def test_states_are_compared_bit_by_bit():
    one = {"a": [torch.tensor([0.0, float("nan")]), 1], "b": {"c": float("nan")}}
    assert unequal("", one, {"a": [torch.tensor([0.0, float("nan")]), 1], "b": {"c": float("nan")}}) == []
    other = {"a": [torch.tensor([-0.0, float("nan")]), 1.0], "b": {"c": 0}}
    assert unequal("", one, other) == ["a[0] differs", "a[1] differs", "b.c differs"]
    assert unequal("", one, {"a": 1}) == ["all of it differs"]
    assert unequal("x", torch.ones(1), torch.ones(1, dtype=torch.float64)) == ["x differs"]


def test_the_tables_of_the_page_are_made_from_the_reports():
    made = script("reliability_tables")
    page = made.PAGE.read_text(encoding="utf-8")
    assert made.filled(page) == page
    for file in made.REPORTS.glob("*.json"):
        assert f"<!-- chaos: {file.name} -->" in page
        assert json.loads(file.read_text())["verdict"] == "nothing was lost"
