"""What a run and a sweep say: at the start, at each evaluation, at the end."""

import csv
import os
import re
import statistics
import subprocess

import pytest
from killing import Told

from normlab.cli import main
from normlab.config import load
from normlab.engine.news import _clock
from normlab.launch.start import start
from normlab.progress import Progress
from normlab.reading import read_jsonl
from normlab.runs.folder import RunFolder
from normlab.runs.lock import locked
from normlab.sweeps.outcome import Outcome, outcomes, table

SMALL = ("batch=4x4", "epochs=2", "model.width=4", "data.fraction=0.1", "tracker=none", "threads=1", "figures=summary")


class Heard(Progress):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def say(self, line: str) -> None:
        self.lines.append(line)


def test_a_run_says_what_it_is_and_how_it_goes(tmp_path):
    settings = load([*SMALL, f"out={tmp_path}"])
    folder, heard = RunFolder.of(settings), Heard()
    start(settings, folder, heard)
    run, batch, length, tracker, *epochs = heard.lines
    assert run.endswith(str(folder.path)) and "4 x 4 samples, cpu, 1 thread" in batch and tracker == "tracker  none"
    assert "16 updates, epochs: 2" in length
    rows = [row for row in read_jsonl(folder.metrics) if "val/top1" in row]
    assert len(rows) == len(epochs) == 2
    for k, (row, line) in enumerate(zip(rows, epochs, strict=True), 1):
        assert line.startswith(f"epoch {k} of 2 | loss {row['train/loss']:.4f}  lr {row['train/lr']:.3g}  top1 ")
        assert f"validation loss {row['val/loss']:.4f}  top1 {row['val/top1']:.2f}" in line
        assert re.search(r"\| [\d,]+ samples/s", line)
    assert epochs[0].endswith(" left") and not epochs[1].endswith(" left")


def test_a_run_that_goes_on_says_after_what(tmp_path):
    settings, heard = load([*SMALL, f"out={tmp_path}", "checkpoint.every=0.25"]), Heard()
    folder = RunFolder.of(settings)

    def stop(what: str, done: float, total: int) -> None:
        if (what, done) == ("training", 5):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        start(settings, folder, Told(stop))
    start(settings, folder, heard)
    assert any("going on after 4" in line for line in heard.lines)


def test_without_a_terminal_there_is_a_line_an_epoch(tmp_path, capsys):
    assert main(["train", *SMALL, f"out={tmp_path}"]) == 0
    assert len(re.findall(r"^epoch [12] of 2 \|", capsys.readouterr().out, re.MULTILINE)) == 2


@pytest.mark.parametrize(("seconds", "said"), [(0.4, "0:00"), (61.2, "1:01"), (3723, "1:02:03")])
def test_time_left(seconds, said):
    assert _clock(seconds) == said


def test_validation_loss_is_the_mean_of_single_samples(tmp_path):
    import torch

    from normlab.engine.saved import open_run

    settings = load([*SMALL, f"out={tmp_path}", "norm=gn", "task.label_smoothing=0.1"])
    folder = RunFolder.of(settings)
    start(settings, folder, Progress())
    session = open_run(folder)
    task, model = session.experiment.task, session.experiment.model.eval()
    data, losses = task.dataset("val"), []
    with torch.no_grad():
        for index in range(len(data)):
            image, label = data[None, index]
            logits = model(task.prepare((image[None], None), "val")[0])[0].double()
            losses.append((logits.logsumexp(0) - logits[label]).item())
    measured = folder.summary()["metrics"]["moving_average"]["loss"]
    assert measured == pytest.approx(statistics.fmean(losses), rel=1e-5)


# ---- sweeps ----------------------------------------------------------------------------------------------------------


def test_a_sweep_ends_in_a_table_and_a_file(tmp_path, capsys):
    swept = ["norm=bn,gn", "batch=4x4,4x2", "seed=0,1", f"out={tmp_path / 'runs'}"]
    words = [word for word in SMALL if not word.startswith("batch=")]
    assert main(["train", "-m", *words, *swept]) == 0
    said = capsys.readouterr()
    assert "mean ± standard deviation over 2 seeds" in said.out
    (file,) = tmp_path.glob("sweeps/*/results.csv")
    with file.open(newline="") as opened:
        rows = list(csv.DictReader(opened))
    assert len(rows) == 8 and list(rows[0])[:5] == ["norm", "batch", "seed", "run", "status"]
    for norm in ("bn", "gn"):
        for batch in ("4x4", "4x2"):
            runs = [row for row in rows if (row["norm"], row["batch"]) == (norm, batch)]
            own = [RunFolder(tmp_path / "runs" / row["run"]).summary()["headline"]["value"] for row in runs]
            assert [float(row["top1"]) for row in runs] == own
            assert f"{statistics.fmean(own):.2f} ± {statistics.stdev(own):.2f}" in said.out


def test_cells_without_a_number_say_why(tmp_path):
    settings = load([*SMALL, f"out={tmp_path}"])
    start(settings, RunFolder.of(settings), Progress())
    run = RunFolder.of(settings).path

    def cell(norm: str, seed: str, status: str, value: float | None) -> Outcome:
        return Outcome({"norm": norm}, seed, run, status, "top1", {} if value is None else {"top1": value})

    found = [cell("bn", "0", "finished", 90.0), cell("bn", "1", "diverged", None), cell("gn", "0", "failed", None)]
    title, shown = table(found)
    assert title == "top-1 accuracy in percent, mean ± standard deviation over 2 seeds"
    assert [list(column.cells) for column in shown.columns[1:]] == [["90.00 (1 diverged)", "1 failed"]]


def test_what_differs_between_cells_is_what_was_swept(tmp_path):
    words = [
        [*SMALL, f"out={tmp_path}", f"norm={norm}", f"optim.lr={lr}"] for norm in ("bn", "gn") for lr in (0.1, 0.2)
    ]
    assert [dict(cell.swept) for cell in outcomes(words, [load(own) for own in words])] == [
        {"norm": norm, "optim.lr": lr} for norm in ("bn", "gn") for lr in ("0.1", "0.2")
    ]


def test_status_tells_a_killed_run_from_one_at_work(tmp_path, capsys):
    settings = load([*SMALL, f"out={tmp_path}"])
    folder = RunFolder.of(settings)
    folder.create(settings)
    folder.set_status("running", updates=16)
    with locked(folder.path):
        assert main(["status", f"out={tmp_path}"]) == 0
        assert "1 running" in capsys.readouterr().out
        left = (folder.path / "lock").read_bytes()
    ended = subprocess.Popen(["true"])
    ended.wait()
    (folder.path / "lock").write_bytes(left.replace(str(os.getpid()).encode(), str(ended.pid).encode()))
    assert main(["status", f"out={tmp_path}"]) == 0
    assert "1 killed" in capsys.readouterr().out
    (folder.path / "lock").write_bytes(left.replace(b'"host": "', b'"host": "another-'))
    assert main(["status", f"out={tmp_path}"]) == 0
    assert "1 running" in capsys.readouterr().out
