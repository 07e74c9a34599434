"""What a finished run left is held against the digests that it left: another bit is named, never another number."""

import random
import shutil

import pytest
from sealed import rewrite

from normlab.cli import main
from normlab.config import load
from normlab.doctor.readers import READERS, REPRODUCE, Answer, notices, words, written
from normlab.errors import UserError
from normlab.reading import last_json, read_json, read_jsonl
from normlab.runs.folder import RunFolder
from normlab.writing import append_jsonl, seal, write_json

SETTINGS = ("norm=sn", "batch=4x4", "epochs=1", "model.width=4", "data.fraction=0.1", "tracker=none", "snapshots=[0.5]")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> RunFolder:
    """A run with every file that commands read, in `runs`; `tables` beside it has the records of a table of it."""
    out = tmp_path_factory.mktemp("finished") / "runs"
    places = {"OUT": str(out), "TABLES": str(out.parent / "tables")}
    assert main([*words(REPRODUCE, places, SETTINGS), "seeds=1"]) == 0
    return RunFolder.of(load([*SETTINGS, f"out={out}"]))


@pytest.fixture
def copy(finished, tmp_path) -> RunFolder:
    shutil.copytree(finished.path.parents[1], tmp_path / "all")
    return RunFolder(tmp_path / "all" / "runs" / finished.path.name)


def ask(command: str, run: RunFolder, capsys) -> Answer:
    out, elsewhere, tables = run.path.parent, run.path.parents[1] / "elsewhere", run.path.parents[1] / "tables"
    elsewhere.mkdir(exist_ok=True)
    places = {"RUN": run.path, "OUT": out, "TABLES": tables, "ELSEWHERE": elsewhere}
    capsys.readouterr()
    status = main(words(command, {place: str(path) for place, path in places.items()}, SETTINGS))
    said = capsys.readouterr()
    return Answer(status, said.out, said.err, written(elsewhere, tables))


def damaged(data: bytes, rng: random.Random) -> bytes:
    """A bit flipped, or the end cut off."""
    at = rng.randrange(len(data))
    return data[:at] if rng.random() < 0.25 else data[:at] + bytes([data[at] ^ 1 << rng.randrange(8)]) + data[at + 1 :]


def assert_damage_is_noticed(run: RunFolder, times: int, capsys) -> None:
    """Each command that reads a file names it so often, or answers as it does of the whole file."""
    rng = random.Random(0)
    for name, commands in READERS.items():
        whole = (run.path / name).read_bytes()
        for number, command in enumerate(commands * times):
            (run.path / name).write_bytes(damaged(whole, rng))
            answer = ask(command, run, capsys)
            (run.path / name).write_bytes(whole)
            noticed = notices(command, name, answer)
            assert noticed or answer.is_as(ask(command, run, capsys)), (name, number, command)


def test_a_flipped_bit_or_a_cut_is_named_by_every_verb_that_reads_the_file(copy, capsys):
    assert_damage_is_noticed(copy, 1, capsys)


@pytest.mark.long
def test_five_hundred_damages(copy, capsys):
    assert_damage_is_noticed(copy, 24, capsys)  # by each of 21 commands


@pytest.mark.long
@pytest.mark.parametrize("command", sorted({command for commands in READERS.values() for command in commands}))
def test_every_reader_answers_of_whole_files(copy, capsys, command):
    answer = ask(command, copy, capsys)
    assert answer.status == 0 and (answer.out or answer.written)


def test_every_file_that_a_run_leaves_for_others_is_read_by_some_command(finished):
    """One that is new stands in the doctor's list too."""
    files = {path.relative_to(finished.path).as_posix() for path in finished.path.rglob("*") if path.is_file()}
    for_people = {name for name in files if name.endswith((".png", ".yaml", ".txt"))}
    assert files - for_people - {name for name in files if name.endswith(".pt")} == READERS.keys()


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
