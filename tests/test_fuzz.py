"""Whatever the words and files: an answer in bounded time, or one line on stderr and status 2; never a traceback."""

import contextlib
import io
import json
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sealed import unsealed

from normlab.cli import main
from normlab.cli.commands import command_line
from normlab.config import GROUPS, SETTINGS, choices, conf_dir, load
from normlab.runs.folder import RunFolder

VERBS = command_line().commands

SECONDS = 30  # for an answer; most take milliseconds
SMALL = ("model.width=4", "data.fraction=0.1", "batch=4x4", "epochs=1", "batch_average.samples=64", "tracker=none")
CHECKS = (HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much)
ORDINARY = settings(max_examples=80, derandomize=True, deadline=None, database=None, suppress_health_check=CHECKS)


def thorough(examples: int) -> settings:
    """Other cases at every run; a failure prints its words."""
    return settings(ORDINARY, max_examples=examples, derandomize=False)


class Hangs(BaseException):
    """No answer within SECONDS."""


# ---- an answer -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", autouse=True)
def run(tmp_path_factory) -> Iterator[RunFolder]:
    """A folder to be in, with one run; from here on, what would train, download or measure for minutes does nothing."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("fuzz"))
        patch.delenv("NORMLAB_DATA", raising=False)
        assert main(["train", *SMALL]) == 0
        patch.setattr("normlab.launch.start.start", lambda *_: "finished")
        patch.setattr("normlab.sweeps.pool.sweep", lambda *_: 0)
        patch.setattr("normlab.sweeps.reproduce.sweep", lambda *_: 0)
        patch.setattr("normlab.datasets.prepare", lambda *_: "prepared")
        yield RunFolder.of(load(list(SMALL)))


def answer(*words: str) -> tuple[int, str]:
    """Exit status and stderr of a command, checked against what every command promises."""

    def alarm(*_: object) -> None:
        raise Hangs

    out, err = io.StringIO(), io.StringIO()
    previous = signal.signal(signal.SIGALRM, alarm)
    signal.alarm(SECONDS)
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(list(words))
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, previous)
    check(status, out.getvalue(), err.getvalue(), words)
    return status, err.getvalue()


def check(status: int, out: str, err: str, words: tuple[str, ...]) -> None:
    if status == 2:
        assert err.startswith("normlab: ") and err.endswith("\n") and err.count("\n") == 1, err
        assert err.removeprefix("normlab: ").strip()
    else:
        assert status == 0 or (words[:2] == ("data", "verify") and status == 1 and out)
        assert "Traceback" not in err


# ---- words ---------------------------------------------------------------------------------------------------------

NESTED = [
    *("norm.mean", "norm.var", "norm.eps", "norm.groups", "norm.mix", "weight.eps", "model.width", "model.name"),
    *("data.size", "data.root", "data.fraction", "data.length", "task.dropout", "optim.lr", "optim.momentum"),
    *(
        "schedule.milestones",
        "schedule.factor",
        "schedule.unit",
        "tracker.project",
        "launch.nodes",
        "launch.rendezvous",
    ),
    *("batch_average.samples", "batch_average.variance", "parts.head", "parts.head.norm", "norm._target_", "scale"),
]
FILES = {group: sorted(choices(group)) for group in GROUPS}
ALL_FILES = sorted({name for files in FILES.values() for name in files})
TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
LOCAL = st.text(alphabet="abx0189.,:;=[]{}()$'\"~+-/\\@*?!#%&|<> \t\n", max_size=16)
NUMBERS = st.one_of(
    st.integers(-3, 40).map(str),
    st.sampled_from([10**18, -(10**18), 10**40, 2**31, 2**63, -(2**63)]).map(str),
    st.floats(width=32).map(str),
    st.sampled_from(["1e400", "1e-400", "-0", "0x10", "1_000", "007", "1e", ".5", "5.", "-inf", "NaN", "9" * 5000]),
)
NAMES = st.sampled_from(
    [
        *(
            "sn",
            "bn",
            "8x2",
            "32x4",
            "1x1",
            "0x3",
            "8X2",
            "in",
            "ln",
            "gn16",
            "en0",
            "auto",
            "all",
            "50k",
            "epoch",
            "fp32",
        ),
        *(
            "true",
            "false",
            "null",
            "none",
            "???",
            "paper",
            "resnet18",
            "os.system",
            "builtins.eval",
            "normlab.cli.main",
        ),
        *("normlab.norm.layer.Normalizer", ".", "..", "/", "/dev/null", "/proc/self/mem", "~", "-", "--", "run.json"),
    ]
)
INTERPOLATIONS = st.sampled_from(
    [
        *("${seed}", "${norm.eps}", "${norm}", "${batch}", "${out}", "${parts}", "${a}", "${.}", "${..}", "${...norm}"),
        *("${oc.env:HOME}", "${oc.env:NO_SUCH}", "${oc.env:NO_SUCH,5}", "${oc.env:NO_SUCH,null}", "${oc.select:seed}"),
        *("${oc.decode:'[1,2]'}", "${oc.decode:'${seed}'}", "${oc.create:{a:1}}", "${oc.dict.keys:norm}", "${}", "${"),
        *(
            "${oc.deprecated:seed}",
            "${hydra:runtime.cwd}",
            "${now:%Y}",
            "${a:1}",
            "${${seed}}",
            "$",
            "$${seed}",
            "${:}",
        ),
    ]
)
SCALARS = st.one_of(
    NUMBERS,
    NAMES,
    INTERPOLATIONS,
    TEXT,
    LOCAL,
    TEXT.map(lambda text: "'" + text.replace("'", "\\'") + "'"),
    LOCAL.map(lambda text: f'"{text}"'),
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda values: f"[{','.join(values)}]"),
        st.lists(st.tuples(SCALARS, inner), max_size=2).map(
            lambda items: "{" + ",".join(f"{key}:{value}" for key, value in items) + "}"
        ),
    ),
    max_leaves=5,
)
SWEEPS = st.one_of(
    st.lists(VALUES, min_size=2, max_size=3).map(",".join),
    st.tuples(
        st.sampled_from(["range", "choice", "glob", "interval", "shuffle", "sort", "tag", "int", "str", "extend_list"]),
        st.one_of(
            st.lists(SCALARS, max_size=3).map(",".join), st.sampled_from(["*", "s*", "[a*,b*]", "0,1e9", "1,9,0"])
        ),
    ).map(lambda call: f"{call[0]}({call[1]})"),
)


@st.composite
def misspelt(draw: st.DrawFn, names: st.SearchStrategy[str]) -> str:
    name = draw(names)
    at = draw(st.integers(0, max(len(name) - 1, 0)))
    return draw(st.sampled_from([name[:at] + name[at + 1 :], name[:at] + name[at : at + 1] + name[at:], name[::-1]]))


KEYS = st.one_of(st.sampled_from(SETTINGS), st.sampled_from(NESTED))
ODD_KEYS = st.one_of(
    misspelt(KEYS),
    st.tuples(KEYS, st.sampled_from([".", "@", "/", ":", "[0]", ".a.b.c.d", "._target_", ".7"]), TEXT).map("".join),
    st.sampled_from(["hydra.run.dir", "hydra/launcher", "hydra.launcher.jobs", "jobs", "on_failure", "choices.norm"]),
    TEXT,
    LOCAL,
)
SIGNS = st.sampled_from(["", "", "", "", "+", "++", "~", "-", "--", "~~"])
CHOICES = st.one_of([st.sampled_from(files).map(f"{group}={{}}".format) for group, files in FILES.items()])
OVERRIDES = st.one_of(
    CHOICES,
    st.tuples(KEYS, st.just("="), VALUES).map("".join),
    st.tuples(SIGNS, st.one_of(KEYS, ODD_KEYS), st.sampled_from(["=", "=", "=", "", "=="]), VALUES).map("".join),
    st.tuples(KEYS, st.just("="), SWEEPS).map("".join),
    st.tuples(st.sampled_from(GROUPS), st.just("="), misspelt(st.sampled_from(ALL_FILES))).map("".join),
)
FLAGS = ["-m", "--multirun", "--cfg", "job", "--cfg=job", "--dry-run", "--help", "-h", "-x", "--", "-"]
WORDS = st.one_of(
    OVERRIDES,
    OVERRIDES,
    OVERRIDES,
    st.sampled_from(FLAGS),
    NAMES,
    TEXT,
    LOCAL,
    st.tuples(OVERRIDES, st.integers(1, 4000)).map(lambda pair: pair[0] * pair[1]).map(lambda word: word[:20_000]),
    st.tuples(KEYS, st.sampled_from(["[", "{a:", "${", "'", "("]), st.integers(1, 2000)).map(
        lambda deep: f"{deep[0]}={deep[1] * deep[2]}"
    ),
)
OTHER_VERBS = st.one_of(
    st.tuples(st.just("list"), st.sampled_from([*GROUPS, "norms", "tables", "scales", "normz"])).map(list),
    st.tuples(st.just("data"), st.sampled_from(["prepare", "verify"]), st.sampled_from(FILES["data"])).map(list),
    st.tuples(st.sampled_from(["reproduce", "report"]), st.sampled_from(["table2", "sn_table2", "tabel2"])).map(list),
    st.sampled_from(["show", "eval", "estimate", "status", "bench", "doctor"]).map(lambda verb: [verb, "a"]),
    misspelt(st.sampled_from(sorted(VERBS))).map(lambda verb: [verb]),
)


@st.composite
def command(draw: st.DrawFn) -> list[str]:
    beginning = draw(
        st.one_of(
            st.just(["train", "--cfg", "job"]),
            st.just(["train"]),
            st.just(["train", "-m"]),
            st.just(["status"]),
            st.just(["reproduce", "table2", "--dry-run"]),
            OTHER_VERBS,
        )
    )
    words = draw(st.lists(WORDS, max_size=4))
    return [*beginning, *words, *draw(st.sampled_from([[], [], [], words[:1]]))]


def any_command(words: list[str]) -> None:
    answer(*words)


test_commands = ORDINARY(given(command())(any_command))
test_many_commands = pytest.mark.long(thorough(10_000)(given(command())(any_command)))


@st.composite
def command_without_work(draw: st.DrawFn) -> list[str]:
    beginning = draw(st.sampled_from([["train", "--cfg", "job"], ["status"], ["show", "a"], ["eval"], ["estimate"]]))
    return [*beginning, *draw(st.lists(WORDS, max_size=3))]


def any_process(words: list[str]) -> None:
    """In a process of its own, with what Python itself may print."""
    done = subprocess.run([sys.executable, "-m", "normlab.cli", *words], capture_output=True, timeout=SECONDS)
    check(done.returncode, done.stdout.decode(), done.stderr.decode(), tuple(words))


test_processes = settings(ORDINARY, max_examples=5)(given(command_without_work())(any_process))
test_many_processes = pytest.mark.long(thorough(50)(given(command_without_work())(any_process)))


# ---- files ---------------------------------------------------------------------------------------------------------

TARGETS = ["os.system", "builtins.eval", "normlab.cli.main", "normlab.schema.bind", "normlab.norm.renorm.BatchRenorm"]
ATOMS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-2, 20),
    st.sampled_from([10**18, -(10**30), 2**63]),
    st.floats(),
    TEXT,
    st.sampled_from(["sn", "8x2", "all", "none", "finished", "[/]", "${seed}", "../..", "bn", "fp64", *TARGETS]),
)
JSON = st.recursive(
    ATOMS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=5
)


@st.composite
def damaged(draw: st.DrawFn, text: str) -> bytes:
    """A file with a value dropped, replaced or added, or with bytes changed; without the digests that would tell."""
    text = unsealed(text)
    if draw(st.integers(0, 3)) == 0:
        data = text.encode()
        at = draw(st.integers(0, len(data)))
        return data[:at] + draw(st.one_of(st.just(b""), st.binary(max_size=4))) + data[at + draw(st.integers(0, 9)) :]
    lines = text.splitlines() if text.count("\n{") else [text]
    at = draw(st.integers(0, len(lines) - 1))
    lines[at] = json.dumps(_changed(draw, json.loads(lines[at])))
    return "".join(line + "\n" for line in lines).encode()


def _changed(draw: st.DrawFn, value: Any) -> Any:
    if draw(st.integers(0, 5)) == 0 or not isinstance(value, dict | list) or not value:
        return draw(JSON)
    copy = dict(value) if isinstance(value, dict) else list(value)
    key = draw(st.sampled_from(sorted(value) if isinstance(value, dict) else range(len(value))))
    if draw(st.integers(0, 4)) == 0:
        del copy[key]
    elif isinstance(copy, dict) and draw(st.integers(0, 5)) == 0:
        copy[draw(TEXT)] = draw(JSON)
    else:
        copy[key] = _changed(draw, value[key])
    return copy


RECORDS = conf_dir().parent / "results" / "sn_table2-digits" / "records.jsonl"
READERS = {  # the commands that read a file
    "run.json": ("eval RUN", "show RUN", "status", "estimate RUN samples=64", "plan init=RUN"),
    "status.json": ("show RUN", "status", "train AGAIN", "plan AGAIN"),
    "summary.json": ("show RUN", "status", "train AGAIN"),
    "metrics.jsonl": ("status",),
    "records.jsonl": ("report table2",),
}


def read_damaged(run: RunFolder, name: str, data: bytes) -> None:
    """Every command that reads the file answers, or refuses it in one line that names it."""
    file = run.path / name
    if name == "records.jsonl":
        file = Path("results/sn_table2-digits") / name
        file.parent.mkdir(exist_ok=True)
    whole = file.read_bytes() if file.exists() else None
    file.write_bytes(data)
    try:
        for command in READERS[name]:
            words = command.replace("RUN", str(run.path)).replace("AGAIN", shlex.join(SMALL))
            answer(*shlex.split(words))
    finally:
        file.write_bytes(whole or b"")


def any_file(run: RunFolder, name: str, data: st.DataObject) -> None:
    text = (RECORDS if name == "records.jsonl" else run.path / name).read_text()
    if name == "records.jsonl":
        text = "".join(line + "\n" for line in text.splitlines()[:6])
    read_damaged(run, name, data.draw(damaged(text)))


@pytest.mark.parametrize("name", READERS)
@settings(ORDINARY, max_examples=10)
@given(data=st.data())
def test_files(run: RunFolder, name: str, data: st.DataObject) -> None:
    any_file(run, name, data)


@pytest.mark.long
@pytest.mark.parametrize("name", READERS)
@thorough(100)
@given(data=st.data())
def test_many_files(run: RunFolder, name: str, data: st.DataObject) -> None:
    any_file(run, name, data)


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(
    "data",
    [b"", b"\xff\xfe", b"null\n", b"[]\n", b"{}\n", b"[" * 100_000 + b"\n", b'{"a":' * 100_000, b"9" * 9999 + b"\n"],
    ids=["empty", "no_text", "null", "list", "nothing", "deep_list", "deep", "digits"],
)
def test_other_files(run: RunFolder, name: str, data: bytes) -> None:
    read_damaged(run, name, data)
