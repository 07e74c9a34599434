"""A run that was killed or stopped, at any moment, and started again ends as the run that was not, bit for bit."""

import json
import random
import signal
from pathlib import Path

import killing
import pytest
from killing import WRITE, Moment, Told, attempt, differences, outcome

from normlab.config import Config
from normlab.launch.start import start
from normlab.progress import silent
from normlab.reading import read_jsonl
from normlab.runs.folder import RunFolder
from normlab.writing import append_jsonl

# Within an epoch, in the last update of one, in its evaluation, in the measurement of statistics, and in writes.
MOMENTS: tuple[Moment, ...] = (
    *(("training", 3), ("training", 8), ("evaluating", 256), (WRITE, 11), ("training", 15)),
    *(("training", 16), ("measuring statistics", 5), (WRITE, 25)),
)
# Whatever a run can record, it does.
RECORDED = ("weight=ws", "record={statistics:6,gradients:true,estimators:true}", "snapshots=[0.3,0.5,0.9]")


def config(out: Path, *more: str) -> Config:
    return killing.config(out, *RECORDED, *more)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """What the run leaves that nothing stops."""
    settings = config(tmp_path_factory.mktemp("whole"))
    assert attempt(settings) == 0
    return outcome(settings)


def test_one_row_for_each_update_and_epoch(whole):
    rows = [json.loads(line) for line in whole["metrics.jsonl"].splitlines()]
    assert [row["step"] for row in rows if "batch/loss" in row] == list(range(1, 17))
    assert [row["step"] for row in rows if "val/top1" in row] == [8, 16]
    for name, steps in (("ratios", [0, 8, 16]), ("statistics", [11, 12, 13, 14, 15, 16]), ("gradients", [1, 9])):
        assert [json.loads(line)["step"] for line in whole[f"{name}.jsonl"].splitlines()] == steps
    assert [name for name in whole["files"] if "snapshots" in name] == [
        f"snapshots/{share}.safetensors" for share in (0.3, 0.5, 0.9)
    ]


@pytest.mark.long  # test_chaos.py kills at random moments every day
def test_a_run_killed_again_and_again_ends_as_if_it_had_not_been(tmp_path, whole):
    settings = config(tmp_path)
    for moment in MOMENTS:
        assert attempt(settings, moment) == -signal.SIGKILL, moment
    assert attempt(settings) == 0
    assert differences(outcome(settings), whole) == []


@pytest.mark.long  # that a signal saves is tested in test_processes and test_scale, too
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_run_stopped_again_and_again_ends_as_if_it_had_not_been(tmp_path, whole, number):
    """With other loader workers each time. A signal loses nothing: the update is finished and saved."""
    settings = config(tmp_path, "checkpoint.every=2")  # epochs
    saved = {("training", 5): 5, ("training", 8): 8, ("evaluating", 256): 8, ("measuring statistics", 5): 8}
    saved |= {("training", 16): 16}
    for moment, updates in saved.items():
        settings.workers = 2 - settings.workers
        assert attempt(settings, moment, number) == 128 + number, moment
        assert RunFolder.of(settings).status() == {"status": "interrupted", "updates": updates, "signal": number}
    settings.workers = 0
    assert attempt(settings) == 0
    assert differences(outcome(settings), whole) == ["files"]  # other checkpoints are among those kept


@pytest.mark.parametrize("moment", [("training", 7), ("training", 10), ("evaluating", 256), (WRITE, 14)])
def test_a_run_killed_between_evaluations_ends_as_if_it_had_not_been(tmp_path, moment):
    """Those are at updates 5, 10, 15 and 16, checkpoints at every second one, and ratios at 8 and 16."""
    more = ("evaluate_every=5", "record.estimators=true")
    settings, other = killing.config(tmp_path / "killed", *more), killing.config(tmp_path / "whole", *more)
    assert attempt(settings, moment) == -signal.SIGKILL
    assert attempt(settings) == attempt(other) == 0
    assert differences(outcome(settings), outcome(other)) == []
    evaluated = [row["step"] for row in read_jsonl(RunFolder.of(settings).metrics) if "val/top1" in row]
    assert evaluated == [5, 10, 15, 16]


def test_a_run_that_goes_on_with_evaluations_at_other_times(tmp_path):
    """Means are of the updates since the evaluation before, whenever that was."""
    settings = killing.config(tmp_path, "evaluate_every=5")
    assert attempt(settings, ("training", 9)) == -signal.SIGKILL  # 8 were saved
    settings.evaluate_every = "epoch"
    assert attempt(settings) == 0
    rows = read_jsonl(RunFolder.of(settings).metrics)
    losses = {row["step"]: row["batch/loss"] for row in rows if "batch/loss" in row}
    means = {row["step"]: row["train/loss"] for row in rows if "val/top1" in row}
    assert list(means) == [5, 8, 16]
    for first, last in ((0, 5), (5, 8), (8, 16)):
        expected = sum(losses[step] for step in range(first + 1, last + 1)) / (last - first)
        assert means[last] == pytest.approx(expected)


def test_a_killed_run_repeats_no_more_than_an_interval(tmp_path):
    settings = config(tmp_path)
    attempt(settings, ("training", 13))
    done: list[int] = []
    start(settings, RunFolder.of(settings), Told(lambda what, n, total: done.append(n) if what == "training" else None))
    assert done[0] == 13  # 12 were saved


def test_models_that_draw_from_the_global_generator_are_resumed_too(tmp_path):
    """As stochastic depth does, in training and while statistics are measured."""
    words = ("task._target_=toy_failing.Noisy", "norm=brn")
    settings, other = config(tmp_path / "killed", *words), config(tmp_path / "whole", *words)
    for moment in (("training", 5), ("measuring statistics", 2)):
        assert attempt(settings, moment) == -signal.SIGKILL
    assert attempt(settings) == attempt(other) == 0
    assert differences(outcome(settings), outcome(other)) == []


def test_rows_that_no_checkpoint_knows_are_written_again(tmp_path, whole):
    """The last of them cut by the kill."""
    settings = config(tmp_path)
    attempt(settings, ("training", 6))
    with RunFolder.of(settings).metrics.open("a") as file:
        file.write(json.dumps({"step": 17}) + '\n{"ste')
    assert attempt(settings) == 0
    assert differences(outcome(settings), whole) == []


def test_rows_that_are_missing_cost_the_checkpoints_behind_them(tmp_path, whole):
    settings = config(tmp_path)
    attempt(settings, ("training", 7))
    metrics = RunFolder.of(settings).metrics
    metrics.write_bytes(b"".join(metrics.read_bytes().splitlines(keepends=True)[:4]))
    assert attempt(settings) == 0
    assert differences(outcome(settings), whole) == []


@pytest.mark.parametrize("name", ["metrics.jsonl", "ratios.jsonl"])
def test_rows_that_are_damaged_cost_the_checkpoints_behind_them(tmp_path, whole, caplog, name):
    """Another bit in one of them would be in what the run leaves for good."""
    settings = config(tmp_path)
    attempt(settings, ("training", 7))
    file = RunFolder.of(settings).path / name
    data = bytearray(file.read_bytes())
    data[data.index(b'"step": ' if name == "ratios.jsonl" else b'"step": 3') + 8] ^= 1
    file.write_bytes(data)
    start(settings, RunFolder.of(settings), silent)
    assert f"{file}: rows up to update 6 are missing or damaged; going back" in caplog.text
    assert differences(outcome(settings), whole) == []


def test_a_torn_line_is_no_row(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"step": 1}\n{"st')
    append_jsonl(file, [{"step": 2}])
    assert [row["step"] for row in read_jsonl(file)] == [1, 2]


@pytest.mark.long
@pytest.mark.parametrize("workers", [0, 2])
def test_a_run_killed_at_each_of_its_writes(tmp_path, whole, workers):
    """Each fsync, each rename, each truncation: the next attempt is killed a write later, until one ends."""
    writes = 0
    for which in range(1, 200):
        settings = config(tmp_path / str(which), f"workers={workers}")
        if attempt(settings, (WRITE, which)) == 0:
            break
        writes += 1
        assert attempt(settings) == 0
        assert differences(outcome(settings), whole) == [], which
    assert writes > 50


@pytest.mark.long
def test_a_run_killed_at_random_moments(tmp_path, whole):
    """50 runs, each killed up to five times."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    chance = random.Random(seed)
    for which in range(50):
        settings = config(tmp_path / str(which), f"workers={chance.choice([0, 2])}")
        for _ in range(5):
            what, most = chance.choice(
                [("training", 16), ("evaluating", 359), ("measuring statistics", 8), (WRITE, 60)]
            )
            attempt(settings, (what, chance.randint(1, most)))
        assert attempt(settings) == 0
        assert differences(outcome(settings), whole) == [], (seed, which)
