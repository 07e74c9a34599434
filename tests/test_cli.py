"""The command line: what is printed, exit statuses, and that nothing imports torch before it must."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

import normlab
from normlab.cli import main
from normlab.cli.commands import command_line
from normlab.config import GROUPS, choices, conf_dir, identity, load, recorded
from normlab.runs.folder import RunFolder
from normlab.writing import append_jsonl, write_json

VERBS = command_line().commands

SOURCE = Path(normlab.__file__).parent.parent


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Another working directory, without data or runs; tables as wide as they need."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NORMLAB_DATA", raising=False)
    monkeypatch.setenv("COLUMNS", "200")


def refusal(capsys, *words: str) -> str:
    """The one line on stderr of a command that is refused."""
    assert main(list(words)) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("normlab: ") and err.endswith("\n") and err.count("\n") == 1, err
    return err


def imports_no_torch(*words: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, which exits with 77 if it has imported torch."""
    script = (
        "import sys; from normlab.cli import main; "
        "status = main(sys.argv[1:]); sys.exit(77 if 'torch' in sys.modules else status)"
    )
    done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True)
    assert done.returncode != 77, f"{words} imported torch"
    return done


# ---- without torch -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words", [["--help"], ["list", *GROUPS, "scales", "tables"], ["train", "--cfg", "job"], ["--version"]]
)
def test_answers_without_torch(words: list[str]) -> None:
    done = imports_no_torch(*words)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "norm=snn"], "norm=snn: there is no such norm; did you mean 'sn'?"),
        (["train", "model=timm", "model.name=resnet5O"], "did you mean 'resnet50'?"),
        (["plan", "batch=8x2", "devices=3"], "allowed: 1, 2, 4, 8"),
        (["show", "nope"], "nope"),
    ],
)
def test_refuses_without_torch(words: list[str], message: str) -> None:
    done = imports_no_torch(*words)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert done.stderr.startswith("normlab: ") and message in done.stderr


# ---- verbs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_help_names_all_verbs(words: list[str], capsys) -> None:
    assert main(words) == 0
    out = capsys.readouterr().out
    assert all(verb in out for verb in VERBS)
    assert all(group in out for group in GROUPS)


def test_version(capsys) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"normlab {normlab.__version__}\n"


@pytest.mark.parametrize("group", GROUPS)
def test_list_describes_every_file(group: str, capsys) -> None:
    assert main(["list", group]) == main(["list", f"{group}s"]) == 0
    once = {name: comment for name, comment in (line.split(None, 1) for line in capsys.readouterr().out.splitlines())}
    assert once == choices(group)
    assert once.keys() == {path.stem for path in (conf_dir() / group).iterdir() if path.suffix == ".yaml"}


@pytest.mark.parametrize("verb", ["train", "plan"])
def test_cfg_job_prints_what_loads_back(verb: str, capsys) -> None:
    words = ["norm=group_sn", "weight=ws", "parts.head=none", "batch=4x1", "optim.lr=0.3", "tracker=none"]
    assert main([verb, *words, "--cfg", "job"]) == 0
    printed = recorded(yaml.safe_load(capsys.readouterr().out))
    assert printed == load(words) and identity(printed) == identity(load(words))


@pytest.mark.parametrize(
    ("words", "messages"),
    [
        (["trian"], ["'trian'", "did you mean 'train'?"]),
        (["norm=sn"], ["'norm=sn'", "allowed: ", "data, "]),
        (["--cfg", "job"], ["--cfg: options stand behind the command", "normlab train --cfg"]),
        (["train", "--cfg", "foo"], ["--cfg foo", "--cfg job"]),
        (["train", "--cfg"], ["--cfg", "--cfg job"]),
        (["train", "norm=bn,gn"], ["norm=bn,gn", "one value"]),
        (["plan", "norm=snn"], ["norm=snn", "did you mean 'sn'?"]),
        (["plan", "norm='a\nb'"], ["norm=a b", "allowed: bn,"]),
        (["list", "normz"], ["normz", "did you mean 'norm'?"]),
        (["status", "uot=x"], ["uot: there is no such setting; did you mean 'out'?"]),
        (["show"], ["expected a run", "normlab status"]),
        (["show", "no\npe"], ["'no pe'", "results/runs"]),
        (["eval", "nope"], ["'nope'", "results/runs"]),
        (["eval", "nope", "spilt=val"], ["spilt=val", "did you mean 'split'?"]),
        (["estimate", "nope", "out=there"], ["'nope'", "there"]),
        (["data"], ["expected prepare, verify or show"]),
        (["data", "prepair", "mnist"], ["prepair mnist", "prepare, verify or show"]),
        (["data", "verify", "minst"], ["'minst'", "did you mean 'mnist'?"]),
        (["data", "verify", "mnist", "rot=x"], ["rot=x", "did you mean 'root'?"]),
        (["show", "--al"], ["--al: there is no such option"]),
        (["export", "nope", "runs=there"], ["'nope'", "there are no runs in there; runs=FOLDER names"]),
        (["figure", "ratios", "nope", "runs=there"], ["'nope'", "there are no runs in there; runs=FOLDER names"]),
        (["status", "out=there"], ["out=there: there is no such folder"]),
        (["reproduce", "table2", "--dryrun"], ["--dryrun: there is no such option; did you mean '--dry-run'?"]),
        (["reproduce", "table2", "seed=1"], ["seed=1: ", "seeds=N"]),
        (["report", "table2", "scale=digit"], ["scale 'digit'", "did you mean 'digits'?"]),
        (["claims", "scale=digit"], ["scale 'digit'", "did you mean 'digits'?"]),
        (["claims", "brn", "results=there"], ["results=there: there is no such folder"]),
        (["claims", "brn", "seeds=3"], ["seeds=3: only with --run"]),
    ],
)
def test_refuses(words: list[str], messages: list[str], capsys) -> None:
    err = refusal(capsys, *words)
    assert all(message in err for message in messages), err


# Some of these only building can tell: one line all the same, and no run is left behind.
RANGES = [
    ("data.size=0", "data.size=0"),
    ("data.fraction=2", "data.fraction=2"),
    ("task.dropout=1.5", "task.dropout=1.5"),
    ("optim.lr=-1", "optim.lr=-1"),
    ("norm.ratio_groups=7", "norm.ratio_groups=7"),
    ("parts.haed=none", "did you mean 'head'?"),
    ("batch=1000x1000", "the training set has 1438"),
    ("model=torchvision model.name=vgg11 data=synthetic data.size=32", "norm=sn: the model has no batch, instance or"),
]


@pytest.mark.parametrize(("word", "message"), RANGES)
def test_values_that_building_refuses(word: str, message: str, capsys, tmp_path: Path) -> None:
    assert message in refusal(capsys, "plan", *word.split())
    assert not list(tmp_path.iterdir())
    assert message in refusal(capsys, "train", *word.split(), "tracker=none")
    assert not list(tmp_path.glob("results/runs/*"))


def test_plan(capsys, tmp_path: Path) -> None:
    words = ["norm=sn", "batch=8x4", "accumulate=2", "epochs=3", "devices=4", "norm.mean=[in,bn]"]
    assert main(["plan", *words]) == 0
    out, err = capsys.readouterr()
    rows = dict(line.rstrip().split("  ", 1) for line in out.splitlines())
    rows = {name.strip(): value.strip() for name, value in rows.items()}
    config = load(words)
    assert err == "" and not list(tmp_path.iterdir())
    assert rows["run"].endswith(f"digits-digits_resnet-sn-8x4x2-s0-{identity(config)} ({identity(config)}, new)")
    assert rows["samples"] == "1438 for training, 359 for validation, each 1x8x8"
    assert rows["length"] == "66 updates, 3 epochs of 22 updates"  # 1438 // (8 * 4 * 2) = 22
    assert rows["update"] == "64 samples: 8 replicas x 4 x 2 iterations"
    assert rows["learning rate"].startswith("0.05,")  # 0.1 * 64 / 128
    assert rows["devices"] == "4, each hosting 2 replicas"
    assert rows["norm layers"].startswith("9, receptive fields 3 to 25 pixels")
    assert int(rows["parameters"].replace(",", "")) > 10_000


# ---- runs ----------------------------------------------------------------------------------------------------------


def fabricate(out: Path, status: str, **summary) -> RunFolder:
    """A run's folder, without training; a summary if it ended."""
    config = load([f"out={out}", f"seed={len(list(out.glob('*')))}"])
    folder = RunFolder.of(config)
    folder.create(config)
    folder.set_status(status, updates=1780, **({"error": "no [memory] left"} if status == "failed" else {}))
    append_jsonl(folder.metrics, [{"step": 1, "loss": 2.3}])
    if summary:
        names = {**config.choices, "batch": config.batch, "seed": config.seed}
        write_json(folder.summary_file, names | {"status": status, "updates": 1780, "seconds": 20.4} | summary)
    return folder


METRICS = {
    "moving_average": {"top1": 98.05, "top5": 100.0},
    "batch_average": {"top1": 99.164, "top5": 99.9},
}
RATIOS = {"mean": {"in": 0.25, "ln": 0.25, "bn": 0.5}, "var": {"in": 0.1, "ln": 0.3, "bn": 0.6}}
HEADLINE = {"metric": "top1", "estimator": "batch_average", "value": 99.164}


def test_show_finished(tmp_path: Path, capsys) -> None:
    folder = fabricate(tmp_path / "runs", "finished", metrics=METRICS, ratios=RATIOS, headline=HEADLINE)
    (folder.path / "ratios.png").touch()
    shown = []
    for name in (str(folder.path), folder.path.name, folder.run()["id"]):
        assert main(["show", name, f"out={tmp_path / 'runs'}"]) == 0
        shown.append(capsys.readouterr().out)
    assert shown[0] == shown[1] == shown[2]
    for text in (
        *("finished after 1780 updates, 20 s", "norm=sn", "model=digits_resnet", "batch=8x2", "seed=0"),
        *("moving average", "98.05", "batch average", "99.16", "99.90", "in 0.250  ln 0.250  bn 0.500", "bn 0.600"),
        *(str(folder.path), str(folder.path / "ratios.png")),
    ):
        assert text in shown[0], text


def test_show_others(tmp_path: Path, capsys) -> None:
    out = tmp_path / "runs"
    diverged = {"metrics": {}, "ratios": None, "headline": HEADLINE | {"value": None}, "diverged_at": 12}
    runs = [fabricate(out, "running"), fabricate(out, "failed"), fabricate(out, "diverged", **diverged)]
    assert main(["show", *(str(run.path) for run in runs)]) == 0
    shown = capsys.readouterr().out
    assert f"{runs[0].path.name}: running\n" in shown
    assert f"{runs[1].path.name}: failed no [memory] left\n" in shown
    assert "not finite at update 12" in shown


def test_status_of_all_runs_in_a_folder(tmp_path: Path, capsys) -> None:
    assert main(["status"]) == 0
    assert "no runs" in capsys.readouterr().out
    out = tmp_path / "results" / "runs"  # the default, seen from here
    finished = fabricate(out, "finished", metrics=METRICS, ratios=None, headline=HEADLINE)
    diverged = fabricate(out, "diverged", metrics={}, ratios=None, headline=HEADLINE | {"value": None})
    running = fabricate(out, "running")
    running.metrics.write_text('{"step": 41, "epoch": 0.5}\n{"step": 42, "epo')
    (out / "no_run").mkdir()
    for words in (["status"], ["status", f"out={out}"]):
        assert main(words) == 0
        rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in capsys.readouterr().out.splitlines()]
        assert {row[0]: row[1:] for row in rows if row} == {
            finished.path.name: ["finished", "1780", "top1 99.16"],
            diverged.path.name: ["diverged", "1780", "-"],
            running.path.name: ["killed", "41", "the same command goes on from the last checkpoint"],
        }


def test_status_shows_a_damaged_run_among_the_others(tmp_path: Path, capsys) -> None:
    fabricate(tmp_path, "finished", metrics=METRICS, ratios=None, headline=HEADLINE)
    fabricate(tmp_path, "running").status_file.write_text("{")
    assert main(["status", f"out={tmp_path}"]) == 0
    assert "1 finished, 1 damaged" in capsys.readouterr().out


def test_status_of_the_cells_of_a_sweep(tmp_path: Path, capsys) -> None:
    words = ["norm=bn,sn", "batch=4x4", "seed=0,1", f"out={tmp_path}"]
    assert main(["status", *words]) == 0
    assert "4 new" in capsys.readouterr().out


def test_a_misspelt_run_names_the_nearest(tmp_path: Path, capsys) -> None:
    folder = fabricate(tmp_path / "runs", "running")
    err = refusal(capsys, "show", folder.path.name.replace("digits", "digit", 1), f"out={tmp_path / 'runs'}")
    assert f"did you mean '{folder.path.name}'?" in err
    run_id = folder.path.name[-8:]
    near = ("0" if run_id[0] != "0" else "1") + run_id[1:]
    assert f"did you mean '{run_id}'?" in refusal(capsys, "show", near, f"out={tmp_path / 'runs'}")


def test_a_run_is_called_by_its_folder_from_inside_too(tmp_path: Path, monkeypatch) -> None:
    folder = fabricate(tmp_path / "runs", "running")
    monkeypatch.chdir(folder.path)
    assert RunFolder.find(".", tmp_path).path.name == folder.path.name


def test_a_finished_run_is_not_run_again(tmp_path: Path, capsys) -> None:
    folder = fabricate(tmp_path / "runs", "finished", metrics=METRICS, ratios=RATIOS, headline=HEADLINE)
    before = {path: path.stat().st_mtime_ns for path in folder.path.rglob("*")}
    assert main(["train", f"out={tmp_path / 'runs'}"]) == 0
    out = capsys.readouterr().out
    assert "finished already" in out and "99.16" in out
    assert {path: path.stat().st_mtime_ns for path in folder.path.rglob("*")} == before


def test_a_run_without_weights_has_nothing_to_evaluate(tmp_path: Path, capsys) -> None:
    folder = fabricate(tmp_path / "runs", "running")
    for words in (["eval"], ["estimate"]):
        assert "has no weights: it is running" in refusal(capsys, *words, str(folder.path))
    for word, message in (
        ("variance=pop", "mean or population"),
        ("samples=5m", "50k or all"),
        ("augment=maybe", "true or false"),
    ):
        assert message in refusal(capsys, "estimate", str(folder.path), word)
    assert "split=test" in refusal(capsys, "eval", str(folder.path), "split=test")


def test_all_runs_are_looked_at_before_the_first_is_evaluated(tmp_path: Path, capsys) -> None:
    done, running = (fabricate(tmp_path / name, "running") for name in ("a", "b"))
    done.weights.parent.mkdir(exist_ok=True)
    done.weights.touch()  # whoever reads this says that it is damaged
    for verb in ("eval", "estimate", "export"):
        assert "has no weights: it is running" in refusal(capsys, verb, str(done.path), str(running.path))


# ---- terminals, pipes and signals ------------------------------------------------------------------------------------


def in_shell(command: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """A shell's command, where `normlab` is this one."""
    command = command.replace("normlab", f"{sys.executable} -m normlab.cli")
    environment = {**os.environ, "PYTHONPATH": str(SOURCE), "NORMLAB_DATA": "", **environment}
    return subprocess.run(["bash", "-c", command], capture_output=True, env=environment, timeout=60)


@pytest.mark.parametrize(
    ("command", "status"),
    [
        ("set -o pipefail; normlab list norm | head -c 1; exit 0", 0),
        ("normlab --help | true; exit ${PIPESTATUS[0]}", 141),
        ("normlab list norm >&-", 0),
        ("normlab --help >&- 2>&-", 0),
        ("normlab --help > /dev/full", 2),
        ("normlab status | true; exit 0", 0),
    ],
)
def test_output_that_nobody_reads(command: str, status: int) -> None:
    done = in_shell(command, COLUMNS="20")
    said = done.stderr.decode()
    assert done.returncode == status and said.count("\n") == (status == 2), said
    assert status != 2 or said.startswith("normlab: ")


@pytest.mark.parametrize(
    ("verb", "environment"),
    [
        ("plan", {"PYTHONIOENCODING": "ascii", "LC_ALL": "C"}),
        ("status", {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}),
        ("plan", {"HOME": "/dev/null", "XDG_CACHE_HOME": "/dev/null", "XDG_CONFIG_HOME": "/dev/null"}),
        ("status", {"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "20"}),
        ("status", {"FORCE_COLOR": "1", "NO_COLOR": "1", "COLUMNS": "1"}),
    ],
)
def test_any_terminal(verb: str, environment: dict[str, str]) -> None:
    done = in_shell(
        f"mkdir -p ö/µ && normlab {verb} 'out=\"ö/µ\"' && normlab list && normlab train norm=snn", **environment
    )
    assert done.returncode == 2 and b"Traceback" not in done.stderr
    assert done.stderr.splitlines()[-1].startswith(b"normlab: norm=snn")
    assert b"\x1b[3" not in done.stdout  # no colour


def test_words_that_are_no_text() -> None:
    done = in_shell("normlab train norm=$'\\xff\\xfe'; normlab plan out=$'\\xff'")
    assert b"Traceback" not in done.stderr and b"normlab: " in done.stderr


def test_ctrl_c_ends_any_verb_quietly() -> None:
    """While it imports or works; the shell learns 130. A shell's background jobs ignore Ctrl-C, and so would theirs."""
    start = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); print(flush=True)"
    for words in (
        ["plan", "model=resnet50"],
        ["status", "seed=range(0,9999)"],
        ["train", "--cfg", "job", *["seed=1"] * 3000],
    ):
        command = [sys.executable, "-c", f"{start}; from normlab.cli import main; sys.exit(main())"]
        with subprocess.Popen([*command, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
            assert process.stdout is not None and process.stderr is not None
            process.stdout.readline()
            time.sleep(0.5)
            process.send_signal(signal.SIGINT)
            process.stdout.read()
            said = process.stderr.read()
        done = (0, -signal.SIGINT) if words[0] == "train" else ()  # it may be at its end
        assert process.returncode in (130, *done), (words, said)
        assert b"Traceback" not in said


def test_a_folder_that_cannot_be_used(tmp_path: Path, capsys) -> None:
    (tmp_path / "file").touch()
    for word in ("file", "file/runs"):
        assert f"out={word}" in refusal(capsys, "train", f"out={word}")
    for command in (["show", "a"], ["status"]):
        assert "out=file" in refusal(capsys, *command, "out=file")
    run = fabricate(tmp_path, "running").path
    assert "out=file: expected a folder" in refusal(capsys, "export", str(run), "out=file")
    assert "runs=file: expected the folder" in refusal(capsys, "export", "a", "runs=file")
    assert "file" in refusal(capsys, "plan", "data=mnist", "data.root=file")
    assert "file" in refusal(capsys, "report", "table2", "results=file")


@pytest.mark.parametrize("error", [BrokenPipeError, ConnectionRefusedError])
def test_a_process_that_has_gone_is_said(monkeypatch, capfd, error) -> None:
    def gone(words: list[str]) -> int:
        raise error  # as when cells of a sweep are handed to a server that could not start

    monkeypatch.setattr(sys.modules["normlab.cli.main"], "_run", gone)
    assert main(["train", "-m"]) == 1
    assert "a process that this one had started has ended" in capfd.readouterr().err
