"""What a finished run left is held against the digests that it left: another bit is named, never another number."""

import random
import shutil
from pathlib import Path

import pytest
from sealed import rewrite

from normlab.cli import main
from normlab.config import load
from normlab.errors import UserError
from normlab.reading import last_json, read_json, read_jsonl
from normlab.runs.folder import RunFolder
from normlab.writing import append_jsonl, seal, write_json

WORDS = ("norm=sn", "batch=4x4", "epochs=1", "model.width=4", "data.fraction=0.1", "tracker=none", "snapshots=[0.5]")
READERS = {  # file -> the commands that read it
    "run.json": ("show", "eval"),
    "status.json": ("status", "train", "eval"),
    "summary.json": ("show", "status", "train"),
    "metrics.jsonl": ("figure learning_curves",),
    "ratios.jsonl": ("figure ratios", "figure ratio_curves"),
    "estimates.jsonl": ("report",),
    "checkpoints/weights.safetensors": ("eval", "estimate samples=64", "plan", "export"),
    "checkpoints/batch_average.safetensors": ("eval", "export"),
    "snapshots/0.5.safetensors": ("plan @0.5",),
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> RunFolder:
    out = tmp_path_factory.mktemp("finished")
    words = [*WORDS, f"out={out}", "batch_average.samples=64"]
    assert main(["train", *words]) == 0
    folder = RunFolder.of(load(words))
    assert main(["estimate", str(folder.path), "samples=64"]) == 0
    return folder


@pytest.fixture
def copy(finished, tmp_path) -> RunFolder:
    return RunFolder(Path(shutil.copytree(finished.path, tmp_path / "runs" / finished.path.name)))


def read(command: str, run: RunFolder) -> int:
    from normlab.report.records import estimates

    verb, *more = command.split()
    if verb == "report":  # of a table; estimates are read for its cells alone
        try:
            return 0 if estimates(run) else 2
        except UserError:
            return 2
    if verb == "plan":
        return main(["plan", *WORDS, f"init={run.path}{''.join(more)}", f"out={run.path.parent}"])
    if verb == "train":
        return main(["train", *WORDS, "batch_average.samples=64", f"out={run.path.parent}"])
    if verb == "status":
        return main(["status", f"out={run.path.parent}"])
    if verb == "figure":
        return main(["figure", *more, str(run.path), f"out={run.path.parent / 'figure.png'}"])
    return main([verb, str(run.path), *more])


def damaged(data: bytes, rng: random.Random) -> bytes:
    """A bit flipped, or the end cut off."""
    at = rng.randrange(len(data))
    return data[:at] if rng.random() < 0.25 else data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def is_named(run: RunFolder, name: str, command: str, capsys) -> bool:
    """Whether the command refuses, or lists the run as damaged; `status` lists all runs, whatever is wrong with one."""
    status, said = read(command, run), capsys.readouterr()
    if command == "status":
        return "damaged" in said.out
    return status != 0 and (Path(name).name in said.err or command == "report")


def assert_damage_is_named(run: RunFolder, times: int, capsys) -> None:
    rng = random.Random(0)
    for name, commands in READERS.items():
        whole = (run.path / name).read_bytes()
        meaning = content(run.path / name)
        for command in commands:
            (run.path / name).write_bytes(whole)
            assert read(command, run) == 0, command
        for number in range(times):
            (run.path / name).write_bytes(damaged(whole, rng))
            command = commands[number % len(commands)]
            assert is_named(run, name, command, capsys) or content(run.path / name) == meaning, (name, number, command)
        (run.path / name).write_bytes(whole)


def content(path: Path) -> object:
    """What a file says; its bytes, unless it is JSON: there, other white space says the same."""
    if path.suffix not in (".json", ".jsonl"):
        return path.read_bytes()
    try:
        return [read_json(path)] if path.suffix == ".json" else read_jsonl(path)
    except UserError as error:
        return error


def test_a_flipped_bit_or_a_cut_is_named_by_every_verb_that_reads_the_file(copy, capsys):
    assert_damage_is_named(copy, 6, capsys)


@pytest.mark.long
def test_five_hundred_damages(copy, capsys):
    assert_damage_is_named(copy, 60, capsys)


def test_a_file_that_is_gone_is_named(copy, capsys):
    copy.metrics.unlink()
    assert main(["figure", "learning_curves", str(copy.path)]) == 2
    assert "metrics.jsonl is gone; rerun=true makes the run again" in capsys.readouterr().err


def test_a_run_without_digests_is_read_as_one_of_an_older_version(copy):
    for file in (copy.run_file, copy.summary_file):
        rewrite(file, lambda value: None)
    rewrite(copy.status_file, lambda status: status.pop("files"))
    assert main(["show", str(copy.path)]) == main(["eval", str(copy.path)]) == 0


def test_lines_of_a_table_are_sealed_one_by_one(tmp_path):
    path = tmp_path / "records.jsonl"
    append_jsonl(path, [{"a": 1}, {"b": "é\n"}], sealed=True)
    assert read_jsonl(path) == [{"a": 1}, {"b": "é\n"}]
    path.write_text(path.read_text().replace('"a": 1', '"a": 7'))
    with pytest.raises(UserError, match="line 1: this is not what was written"):
        read_jsonl(path)


@pytest.mark.parametrize(
    "value", [{"a": 1}, {"": {"sha256": "x"}}, {"x": float("nan"), "y": [1e300, -0.0]}, {"z": "}"}]
)
def test_what_is_sealed_is_read_as_it_was(tmp_path, value):
    write_json(tmp_path / "x.json", value, sealed=True)
    assert repr(read_json(tmp_path / "x.json")) == repr(value)
    assert seal('{"a": 1}').startswith('{"sha256": "')


@pytest.mark.parametrize("length", [10, 4095, 4096, 4097, 50_000])
def test_the_last_row_is_found_however_long_it_is(tmp_path, length):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n' * 3 + '{"step": 4, "x": "' + "y" * length + '"}\n')
    found = last_json(path)
    assert found is not None and found["step"] == 4
    path.write_text('{"step": 5, "x": "' + "y" * length + '"}\n')
    found = last_json(path)
    assert found is not None and found["step"] == 5
