"""Settings from the words of a command line: bad ones refused in one line, and what makes a run another run."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml
from conf_pairs import companions, task_of
from hydra import compose as hydra_compose
from hydra import initialize_config_dir
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from normlab.config import (
    EXECUTION,
    GROUPS,
    SETTINGS,
    Batch,
    choices,
    compose,
    conf_dir,
    files,
    identity,
    load,
    parse,
    recorded,
    run_name,
)
from normlab.errors import UserError


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Another working directory, without data or runs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NORMLAB_DATA", raising=False)


def refusal(*words: str) -> str:
    with pytest.raises(UserError) as raised:
        load(list(words))
    assert "\n" not in str(raised.value)
    return str(raised.value)


TRIED = [(group, name) for group in GROUPS for name in choices(group) if task_of(group, name)]


@pytest.mark.parametrize(("group", "name"), TRIED)
def test_every_file_composes(group: str, name: str, tmp_path: Path) -> None:
    words = [f"{group}={name}", *companions(group, name)]
    if group == "data" and "root" in (conf_dir() / group / f"{name}.yaml").read_text():
        words.append(f"data.root={tmp_path}")
    config = load(words)
    assert config.choices[group] == name
    written = yaml.safe_load((conf_dir() / group / f"{name}.yaml").read_text())
    written.pop("_kind_", None)  # what tasks it is for; no setting
    written.pop("defaults", None)  # files of other groups that a task brings
    if written["_target_"] is None:
        assert getattr(config, group) is None
    else:
        composed = getattr(config, group)
        assert {key: composed[key] for key in written.keys() - {"root"}} == {
            key: value for key, value in written.items() if key != "root"
        }


def test_config_yaml_has_every_setting() -> None:
    written = yaml.safe_load((conf_dir() / "config.yaml").read_text())
    groups = {next(iter(entry)) for entry in written.pop("defaults") if isinstance(entry, dict)}
    assert groups == set(GROUPS)
    assert groups | written.keys() == set(SETTINGS)
    assert set(EXECUTION) < set(SETTINGS)


# ---- bad input -----------------------------------------------------------------------------------------------------

BAD = [
    # (words, what the message must contain)
    ("norm=snn", "norm=snn", "did you mean 'sn'?"),
    ("norm=", "norm=:", "allowed: bn,"),
    ("norm=../norm/sn", "norm=../norm/sn", "allowed: bn,"),
    ("norm=sn.yaml", "norm=sn.yaml", "norm"),
    ("norm=3", "norm=3", "allowed: bn,"),
    ("norm=true", "norm=true", "allowed: bn,"),
    ("norm=1e3", "norm=1000.0", "allowed: bn,"),
    ("norm=[bn]", "norm=[bn]", "did you mean 'bn'?"),
    ("norm={a:1}", "norm={a:1}", "allowed: bn,"),
    ("norm=${foo}", "norm=${foo}", "allowed: bn,"),
    ("norm=${batch}", "norm=${batch}", "allowed: bn,"),
    ("model=resnet5O", "model=resnet5O", "did you mean 'resnet50'?"),
    ("model=none", "model=none", "allowed: deeplab_resnet50,"),
    ("data=null", "data=none", "allowed: ade20k,"),
    ("launch=slurm", "launch=slurm", "allowed: local"),
    # keys
    ("nrom=sn", "nrom:", "did you mean 'norm'?"),
    ("+x=1", "x:", "allowed: accumulate,"),
    ("++x=1", "x:", "allowed: accumulate,"),
    ("lr=1", "lr:", "did you mean 'optim.lr'?"),
    ("samples=1", "samples:", "did you mean 'batch_average.samples'?"),
    ("eps=1", "eps:", "'norm.eps' or"),
    ("norm.epsilon=1", "norm.epsilon:", "did you mean 'eps'?"),
    ("norm.foo.bar=1", "norm.foo:", "allowed: affine,"),
    ("schedule.milestone=[1]", "schedule.milestone:", "did you mean 'milestones'?"),
    ("schedule=cosine schedule.milestones=[1]", "schedule.milestones:", "it belongs to schedule=step"),
    ("schedule=cosine schedule.stone=[1]", "schedule.stone:", "allowed: unit, warmup"),
    ("scale=photographs_style", "photographs_style.yaml: task.", "it belongs to task=stylization"),
    ("scale=digits_enas norm=bn", "digits_enas.yaml: task.", "it belongs to task=search"),
    ("task=search task.style=x", "task.style:", "it belongs to task=stylization"),
    ("batch_average.sample=5k", "batch_average.sample:", "did you mean 'samples'?"),
    ("batch_average={variances:mean}", "batch_average.variances:", "did you mean 'variance'?"),
    ("norm=none norm.eps=1", "norm.eps:", "'norm' is none"),
    ("tracker=none tracker.project=x", "tracker.project:", "no such setting"),
    ("choices.norm=bn", "choices.norm:", "no such setting"),
    ("hydra.run.dir=x", "hydra.run.dir:", "for sweeps, with -m"),
    ("norm@weight=bn", "norm@weight:", "no such setting"),
    ("norm/x=bn", "norm/x:", "did you mean 'norm'?"),
    ("parts.head.nrom=bn", "parts.head.nrom:", "did you mean 'norm'?"),
    ("parts.head=nope", "parts.head.norm=nope", "did you mean 'none'?"),
    ("parts.head.weight=wss", "parts.head.weight=wss", "did you mean 'ws'?"),
    ("parts.head=[bn]", "parts.head.norm=[bn]", "did you mean 'bn'?"),
    ("parts.head.norm.epss=1", "parts.head.norm.epss", "did you mean 'eps'"),
    ("parts=3", "parts=3", "settings with names"),
    # grammar
    ("norm=[", "norm=[", "KEY=VALUE"),
    ("norm='sn", "norm='sn", "KEY=VALUE"),
    ("norm", "'norm'", "KEY=VALUE"),
    ("norm:sn", "norm:sn", "KEY=VALUE"),
    ("norm=sn=bn", "norm=sn=bn", "KEY=VALUE"),
    ("=1", "", "no such setting"),
    ("nörm=bn", "nörm=bn", "KEY=VALUE"),
    ("norm.mean=[ïn]", "norm.mean=[ïn]", "KEY=VALUE"),
    ("parts.=none", "parts.=none", "KEY=VALUE"),
    ("norm..eps=1", "norm..eps=1", "KEY=VALUE"),
    ("batch=${", "batch=${", "KEY=VALUE"),
    ("~norm", "~norm", "cannot be removed"),
    ("~batch=8x2", "~batch=8x2", "cannot be removed"),
    ("norm=bn,gn", "norm=bn,gn", "one value of norm"),
    ("seed=range(3)", "seed=range(3)", "one value of seed"),
    ("norm=glob(*)", "norm=glob(*)", "one value of norm"),
    ("norm.mean=in,ln", "norm.mean=in,ln", "brackets, as [a,b]"),
    ("--config-name=x", "--config-name=x", "allowed: -m, --cfg job"),
    # interpolations
    ("batch=${foo}", "batch:", "'foo' not found"),
    ("batch=${batch}", "batch:", "Recursive"),
    ("out=${oc.env:NORMLAB_NO_SUCH}", "out:", "NORMLAB_NO_SUCH"),
    ("seed=${a:1}", "seed:", "interpolation type a"),
    ("norm.mean=[${norm}]", "norm.mean[0]:", "Interpolation to parent"),
    ("seed=???", "seed:", "Missing"),
    ("out=${norm}", "out={_target_:", "expected a word"),
    # targets
    ("norm._target_=os.system", "_target_=os.system", "no Python module 'os'"),
    ("norm._target_=normlab.norm.layer.Normaliser", "Normaliser", "did you mean 'Normalizer'?"),
    ("norm._target_=3", "norm._target_=3", "package.module.name"),
    ("norm._target_.x=1", "norm._target_={x:1}", "package.module.name"),
    ("model._target_=null", "model._target_=null", "a run needs a model"),
    # types
    ("epochs=ten", "epochs=ten", "a finite number"),
    ("epochs=nan", "epochs=nan", "a finite number"),
    ("epochs=inf", "epochs=inf", "a finite number"),
    ("epochs=true", "epochs=true", "a finite number"),
    ("seed=1.5", "seed=1.5", "a whole number"),
    ("seed=null", "seed=null", "a whole number"),
    ("seed=", "seed=", "a whole number"),
    ("iterations=1.5", "iterations=1.5", "a whole number or null"),
    ("rerun=maybe", "rerun=maybe", "true or false"),
    ("compile=1", "compile=1", "true or false"),
    ("out=null", "out=null", "a word"),
    ("batch=[8,2]", "batch=[8,2]", "a word"),
    ("optim.lr=abc", "optim.lr=abc", "a finite number"),
    ("optim.lr=nan", "optim.lr=nan", "a finite number"),
    ("optim.decay=none", "optim.decay=none", "all or not_norm"),
    ("norm.groups=1.5", "norm.groups=1.5", "a whole number"),
    ("norm.mix=varr", "norm.mix=varr", "did you mean 'var'?"),
    ("norm.mean=bn", "norm.mean=bn", "did you mean '[bn]'?"),
    ("norm.mean={in:1}", "norm.mean={in:1}", "ListConfig"),
    ("norm.mean.7=bn", "norm.mean.7=bn", "out of range"),
    ("norm.mean.x=bn", "norm.mean.x=bn", "--cfg job"),
    ("schedule.milestones=abc", "schedule.milestones=abc", "a list"),
    ("precision=fp31", "precision=fp31", "did you mean 'fp32'?"),
    ("precision=16", "precision=16", "did you mean 'fp16'?"),
    ("estimator=movingaverage", "estimator=movingaverage", "did you mean 'moving_average'?"),
    ("batch_average=5", "batch_average=5", "settings with names"),
    ("batch_average.variance=pop", "batch_average.variance=pop", "mean or population"),
    ("ratios_every=epochs", "ratios_every=epochs", "did you mean 'epoch'?"),
    # values
    ("batch=8by2", "batch=8by2", "did you mean '8x2'?"),
    ("batch=0x4", "batch=0x4", "above 0"),
    ("batch=8x", "batch=8x", "for example 8x2"),
    ("batch=x8", "batch=x8", "for example 8x2"),
    ("batch=8", "batch=8", "for example 8x2"),
    ("batch=8x2x2", "batch=8x2x2", "for example 8x2"),
    ("batch=-8x2", "batch=-8x2", "above 0"),
    ("batch=8x2 devices=3", "devices=3", "allowed: 1, 2, 4, 8"),
    ("devices=0", "devices=0", "allowed: 1, 2, 4, 8"),
    ("devices=-1", "devices=-1", "allowed: 1, 2, 4, 8"),
    ("devices=many", "devices=many", "a whole number or auto"),
    ("batch=1000000000000x1 devices=3", "devices=3", "allowed: 1, 2, 4, 5,"),
    ("accumulate=0", "accumulate=0", "1 or more"),
    ("iterations=0", "iterations=0", "1 or more"),
    ("epochs=0", "epochs=0", "above 0"),
    ("epochs=1e308", "epochs=1e+308", "expected a number up to 1000000000"),
    ("replicas_per_pass=0", "replicas_per_pass=0", "1 or more"),
    ("seed=-1", "seed=-1", "0 or more"),
    ("seed=99999999999999999999999999", "seed=99999999999999999999999999", str(2**63 - 1)),
    ("workers=-1", "workers=-1", "0 or more"),
    ("threads=0", "threads=0", "1 or more"),
    ("log_every=0", "log_every=0", "1 or more"),
    ("ratios_every=0", "ratios_every=0", "1 or more"),
    ("evaluate_every=0", "evaluate_every=0", "1 or more"),
    ("evaluate_every=epochs", "evaluate_every=epochs", "did you mean 'epoch'?"),
    ("checkpoint.every=0", "checkpoint.every=0", "above 0"),
    ("checkpoint.keep=0", "checkpoint.keep=0", "1 or more"),
    ("norm_dropout=1", "norm_dropout=1", "from 0 to below 1"),
    ("batch_average.samples=0", "batch_average.samples=0", "50k or all"),
    ("batch_average.samples=5m", "batch_average.samples=5m", "50k or all"),
    ("norm.mean=[]", "norm.mean=[]", "allowed: in, ln, bn"),
    ("norm.mean=[in,lm]", "'lm'", "allowed: in, ln, bn"),
    ("norm.mean=[in8]", "'in8'", "allowed: in, ln, bn"),
    ("norm.var=[bn,bn]", "norm.var=[bn,bn]", "twice"),
    ("norm=sn_tied norm.mean=[in]", "norm.mean=[in]", "the same scopes"),
    ("norm.groups=0", "norm.groups=0", "1 or more"),
    ("norm.eps=0", "norm.eps=0", "above 0"),
    ("norm.momentum=2", "norm.momentum=2", "up to 1"),
    ("optim.momentum=-1", "optim.momentum=-1", "0 or more"),
    ("optim.weight_decay=-1", "optim.weight_decay=-1", "0 or more"),
    ("schedule.milestones=[-1]", "schedule.milestones=-1", "0 or more"),
    ("model.width=0", "model.width=0", "1 or more"),
    ("norm=brn norm.r_max=0.9", "norm.r_max=0.9", "1 or more"),
    ("norm=brn norm.d_max=-1", "norm.d_max=-1", "0 or more"),
    ("norm=brn norm.warmup=-1", "norm.warmup=-1", "0 or more"),
    ("weight=ws weight.eps=0", "weight.eps=0", "above 0"),
    ("optim.lr=-1", "optim.lr=-1", "expected a number above 0"),
    ("optim.lr_batch=0", "optim.lr_batch=0", "1 or more"),
    ("optim=rmsprop optim.alpha=1.1", "optim.alpha=1.1", "up to 1"),
    ("optim.nesterov=true optim.momentum=0", "optim.nesterov=true", "optim.momentum above 0"),
    ("schedule.milestones=[0.6,0.3]", "schedule.milestones=[0.6,0.3]", "ascending order"),
    ("schedule.factor=0", "schedule.factor=0", "above 0"),
    ("model.width=100000", "model.width=100000", "up to 65536"),
    ("model=densenet121_small model.blocks=[6,0]", "model.blocks=0", "1 or more, up to 1024"),
    ("data.size=0", "data.size=0", "1 or more"),
    ("data.shift=-1", "data.shift=-1", "0 or more"),
    ("data.fraction=0", "data.fraction=0", "expected a number above 0, up to 1"),
    ("data.fraction=-1", "data.fraction=-1", "expected a number above 0, up to 1"),
    ("data.fraction=1.01", "data.fraction=1.01", "expected a number above 0, up to 1"),
    ("data.fraction=nan", "data.fraction=nan", "a finite number"),
    ("data=cifar10 data.padding=-1", "data.padding=-1", "0 or more"),
    ("data=synthetic data.channels=0", "data.channels=0", "1 or more"),
    ("data=synthetic data.val_length=0", "data.val_length=0", "1 or more"),
    ("task.dropout=1", "task.dropout=1", "expected a number from 0 to below 1"),
    ("task.label_smoothing=-0.1", "task.label_smoothing=-0.1", "expected a number from 0 to below 1"),
    ("launch.nodes=0", "launch.nodes=0", "1 or more"),
    ("launch.timeout=-5", "launch.timeout=-5", "expected a whole number of 1 or more"),
    ("norm=SN", "norm=SN", "did you mean 'sn'?"),
    ("norm=syncbn replicas_per_pass=2", "replicas_per_pass=2", "norm.sync=true"),
    ("parts.head=syncbn replicas_per_pass=2", "replicas_per_pass=2", "norm.sync=true"),
    ("model=timm model.name=resnet5O", "'resnet5O'", "did you mean 'resnet50'?"),
    ("model=torchvision model.name=resnet50d", "'resnet50d'", "did you mean 'resnet50'?"),
    ("data=cifar10", "data.root=data/cifar10", "normlab data prepare cifar10"),
    ("data=mnist data.root=/no/where", "data.root=/no/where", "normlab data prepare mnist"),
    ("init=nowhere", "init=nowhere", "a run's folder"),
    ("init=.", "init=.", "a run's folder"),
    ("init=", "init=", "a run's folder"),
    ("init=nowhere@0.3", "init=nowhere", "a run's folder"),
    ("init=1a2b3c4d@30", "init=1a2b3c4d@30", "a share of the run's updates"),
    ("snapshots=[0.3,1]", "snapshots=1", "between 0 and 1"),
    ("snapshots=0.3", "snapshots=0.3", "did you mean '[0.3]'?"),
    ("record.statistics=-1", "record.statistics=-1", "0 or more"),
    ("record.gradient=true", "record.gradient", "did you mean 'gradients'?"),
    ("record.gradients=true compile=true", "record.gradients", "compile=true"),
    ("out=", "out=", "folder"),
    ("out=/dev/null/runs", "out=/dev/null/runs", "/dev/null is no folder"),
]


@pytest.mark.parametrize(("words", "offending", "help"), BAD, ids=[words for words, *_ in BAD])
def test_refuses(words: str, offending: str, help: str) -> None:
    message = refusal(*words.split(" "))
    assert offending in message and help in message, message


@pytest.mark.parametrize("word", ["", " ", "a b", "batch=8 x 2 y '", "out=my[runs", "init=" + "a" * 10_000])
def test_refuses_odd_words(word: str) -> None:
    assert word.strip() in refusal(word)


KEYS = st.sampled_from([*SETTINGS, "norm.mean", "norm.eps", "optim.lr", "parts.head", "batch_average.samples", "x"])
VALUES = st.one_of(
    st.text(max_size=8),
    st.text(alphabet="x0123456789.,:[]{}$'\"~+=-() \\", max_size=8),
    st.sampled_from(["sn", "8x2", "null", "true", "1e400", "-1", "[bn]", "{a:1}", "${seed}", "${x}", "???", "1,2"]),
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(["", "", "", "+", "++", "~"]), KEYS, st.sampled_from(["=", "=", "=", "", "@", "."]), VALUES)
def test_any_word_is_accepted_or_refused_in_one_line(sign: str, key: str, equals: str, value: str) -> None:
    try:
        config = load([f"{sign}{key}{equals}{value}"])
    except UserError as error:
        assert str(error).count("\n") <= value.count("\n")  # the command line joins them
    else:
        json.dumps(config.to_dict(), allow_nan=False)
        assert re.fullmatch("[0-9a-f]{8}", identity(config))


# ---- good input ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["8x2", "1x1", "32x1", "128x1024"])
def test_batch(text: str) -> None:
    batch, (replicas, per_replica) = Batch(text), map(int, text.split("x"))
    assert (batch.replicas, batch.per_replica, batch.total) == (replicas, per_replica, replicas * per_replica)
    assert str(batch) == text


def test_values_as_hydra_reads_them() -> None:
    words = ["norm=hn", "norm.var=[en8, bn]", "optim.lr=1", "iterations=100", "out='my [runs]'", "seed=${norm.groups}"]
    config = load([*words, "parts.head={norm: null, weight: ws}", "batch_average={samples: 5k}", "seed=7"])
    assert config.norm == load(["norm=hn"]).norm | {"var": ["en8", "bn"]}
    assert (config.optim["lr"], config.iterations, config.out, config.seed) == (1.0, 100, "my [runs]", 7)
    assert config.parts["head"] == {"norm": None, "weight": load(["weight=ws"]).weight}
    assert config.batch_average.num_samples == 5000 and config.batch_average.variance == "mean"
    assert load(["++norm=bn"]).norm == load(["norm=bn"]).norm
    assert load(["+seed=${norm.groups}", "norm.groups=4"]).seed == 4
    assert load(["seed=1", "norm=bn", "seed=2", "norm=gn"]).seed == 2


def test_words_of_a_sweep_may_hold_several_values() -> None:
    assert parse("norm=bn,gn", sweep=True).is_choice_sweep()
    assert parse("seed=range(3)", sweep=True).is_range_sweep()
    for word in ("nrom=bn,gn", "norm=[", "~norm"):
        with pytest.raises(UserError):
            parse(word, sweep=True)


def test_update_samples_count_accumulated_iterations() -> None:
    config = load(["batch=4x3", "accumulate=5"])
    assert (config.replicas, config.per_replica, config.update_samples) == (4, 3, 60)


def test_data_folder_of_the_environment(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "cifar10").mkdir()
    monkeypatch.setenv("NORMLAB_DATA", str(tmp_path))
    assert load(["data=cifar10"]).data["root"] == str(tmp_path / "cifar10")


def test_json_round_trip() -> None:
    config = load(["norm=group_sn", "parts.head=none", "iterations=5", "batch_average.samples=all", "schedule=cosine"])
    again = recorded(json.loads(json.dumps(config.to_dict())))
    assert again == config and identity(again) == identity(config) and run_name(again) == run_name(config)


# ---- identity ------------------------------------------------------------------------------------------------------


def id_of(*words: str) -> str:
    return identity(load(list(words)))


SAME = [
    *("devices=4", "replicas_per_pass=2", "workers=3", "threads=1", "channels_last=true", "compile=true"),
    *("out=elsewhere", "rerun=true", "log_every=3", "ratios_every=7", "checkpoint.every=5", "snapshots=[0.3]"),
    *("evaluate_every=7", "record.statistics=200", "record.gradients=true", "record.estimators=true", "figures=all"),
    *("tracker=none", "tracker.project=mine", "launch.timeout=5", "launch.nodes=2"),
    *("batch_average.samples=50000", "norm.groups=32", "norm.eps=0.00001", "seed=0", "epochs=30.0"),
]
OTHER = [
    *("norm=bn", "norm.eps=1e-3", "norm.mix=std", "weight=ws", "model=mlp", "model.width=8", "data=synthetic"),
    *("data.size=16", "data.fraction=0.5", "task.dropout=0.5", "optim=rmsprop", "optim.lr=1", "schedule=poly"),
    *("schedule.milestones=[0.5]", "batch=4x4", "accumulate=2", "epochs=21", "iterations=5", "seed=1"),
    *("precision=bf16", "parts.head=none", "norm_dropout=0.1", "estimator=moving_average"),
    *("batch_average.samples=1k", "batch_average.variance=population", "batch_average.augment=false"),
]


def test_every_setting_is_in_one_list() -> None:
    keys = {word.partition("=")[0].split(".")[0] for word in (*SAME, *OTHER)}
    assert keys | {"task", "init", "phases"} == set(SETTINGS)
    assert {word.partition("=")[0].split(".")[0] for word in SAME} >= set(EXECUTION)


def test_execution_keeps_the_identity() -> None:
    default = id_of()
    assert [word for word in SAME if id_of(word) != default] == []


def test_science_changes_the_identity() -> None:
    ids = [id_of(word) for word in ("seed=0", *OTHER)]
    assert len(set(ids)) == len(ids)


def test_same_content_is_the_same_run() -> None:
    assert id_of("optim.lr=1") == id_of("optim.lr=1.0") != id_of()
    assert id_of("norm=hn", "norm.groups=8") == id_of("norm=hn_g8")
    assert id_of("model=torchvision", "model.name=resnet18") == id_of("model=resnet18")
    assert id_of("iterations=5", "epochs=1") == id_of("iterations=5", "epochs=2") != id_of("epochs=2")


def test_the_data_folder_does_not_matter(tmp_path: Path) -> None:
    folders = [tmp_path / name for name in "ab"]
    for folder in folders:
        folder.mkdir()
    here, there = (id_of("data=cifar10", f"data.root={folder}") for folder in folders)
    assert here == there != id_of("data=cifar100", f"data.root={folders[0]}")


def test_init_stands_for_its_content(tmp_path: Path) -> None:
    for name, content in (("a", b"1"), ("b", b"1"), ("c", b"2")):
        Path(f"{name}.safetensors").write_bytes(content)
    a, b, c = (id_of(f"init={name}.safetensors") for name in "abc")
    assert a == b != c and id_of() not in (a, c)
    for name, run_id in (("run", "12345678"), ("moved", "12345678"), ("other", "87654321")):
        Path(name).mkdir()
        (Path(name) / "run.json").write_text(json.dumps({"id": run_id}))
    run, moved, other = (id_of(f"init={name}") for name in ("run", "moved", "other"))
    assert run == moved != other and id_of() not in (run, other)


def test_run_name() -> None:
    assert run_name(load([])) == "digits-digits_resnet-sn-8x2-s0"
    words = ["norm=gn", "weight=ws", "batch=4x1", "accumulate=2", "seed=3", "model=mlp"]
    assert run_name(load(words)) == "digits-mlp-gn-ws-4x1x2-s3"


# ---- what a task takes ---------------------------------------------------------------------------------------------

SECOND = """
from typing import ClassVar
from normlab.tasks.classification import Classification

class Second(Classification):
    takes: ClassVar = {"model": ["parser"], "data": ["dots"]}
"""


@pytest.fixture
def two_tasks(tmp_path, monkeypatch):
    """conf/ with a second task, and a model and data that are for it alone."""
    shutil.copytree(conf_dir(), tmp_path / "conf")
    (tmp_path / "second_task.py").write_text(SECOND)
    monkeypatch.syspath_prepend(tmp_path)
    written = {
        "task/second": "_target_: second_task.Second",
        "model/net": "_kind_: parser\n_target_: normlab.models.mlp.mlp",
        "data/clouds": "_kind_: [swarms, dots]\n_target_: normlab.data.digits.Digits",
    }
    for name, text in written.items():
        (tmp_path / "conf" / f"{name}.yaml").write_text(f"# of the second task\n{text}\n")
    monkeypatch.setattr("normlab.config.files.conf_dir", lambda: tmp_path / "conf")
    for cached in (compose._compose_files, files.default_choice):
        cached.cache_clear()
    yield
    compose._compose_files.cache_clear()


def test_files_of_a_second_task_are_tried_with_it(two_tasks):
    """So that no test pairs them with classification: it pairs every other file with what it has been paired with."""
    assert companions("model", "net") == ["task=second", "data=clouds"]
    assert companions("data", "clouds") == ["task=second", "model=net"]
    assert companions("task", "second") == ["model=net", "data=clouds"]
    assert companions("model", "mlp") == companions("optim", "sgd") == companions("data", "cifar10") == []
    for group, name in (("model", "net"), ("data", "clouds"), ("task", "second"), ("norm", "hn")):
        assert load([f"{group}={name}", *companions(group, name)]).choices[group] == name


@pytest.mark.parametrize(("words", "message"), [
    (["task=second"], "model=digits_resnet: this is for classifier, and task=second takes parser; allowed: net"),
    (["task=second", "model=net"], "data=digits: this is for images, and task=second takes dots; allowed: clouds"),
    (["model=net"], "model=net: this is for parser, and task=classification takes classifier; allowed: densenet121"),
    (["data=clouds"], "data=clouds: this is for swarms and dots, and task=classification takes images; allowed:"),
])  # fmt: skip
def test_what_a_task_does_not_take_is_refused_before_any_work(two_tasks, words, message):
    with pytest.raises(UserError) as refused:
        load(words)
    assert message in str(refused.value) and "\n" not in str(refused.value)


def test_a_file_that_says_nothing_is_not_checked(two_tasks, tmp_path):
    (tmp_path / "conf" / "model" / "own.yaml").write_text("# mine\n_target_: normlab.models.mlp.mlp\n")
    assert load(["model=own"]).choices["model"] == "own"
    assert load(["task=second", "model=own", "data=clouds"]).choices["model"] == "own"


def test_a_file_whose_module_is_missing_matters_to_those_alone_who_ask_for_it(two_tasks, tmp_path):
    (tmp_path / "conf" / "task" / "lost.yaml").write_text("# lost\n_target_: nowhere.Task\n")
    with pytest.raises(UserError, match="bacth: there is no such setting; did you mean 'batch'"):
        load(["bacth=8x2"])
    with pytest.raises(UserError, match=r"lr: there is no such setting; did you mean 'optim\.lr'"):
        load(["lr=0.1"])
    with pytest.raises(UserError, match="there is no Python module 'nowhere'"):
        load(["task=lost"])


COMPOSED_BY_HYDRA = [
    (),
    ("norm=sn", "batch=8x2"),
    ("norm=sn", "norm.eps=1e-3", "norm.momentum=null", "optim=sgd", "optim.lr=0.3", "seed=3"),
    ("seed=1", "optim.lr=0.1", "optim=adam", "seed=2"),
    ("optim.lr=1", "optim.lr=2"),
    ("parts.head=none", "parts.backbone={norm:bn,weight:ws}", "parts.head={norm:gn}"),
    ("schedule=step", "schedule.milestones=[1,2,3]"),
    ("data=scenes", "data.size=48", "out='my runs'", "tracker.mode=disabled"),
    ("task=segmentation", "model.width=8", "data.train=64"),
    ("data.root=${oc.env:HOME}", "init=a/${seed}"),
    ("norm=none", "weight=ws"),
]


@pytest.mark.parametrize("words", COMPOSED_BY_HYDRA, ids=" ".join)
def test_words_mean_what_hydra_alone_would_make_of_them(words: tuple[str, ...]) -> None:
    """Files once for each choice of them, then values: the same as one composition of Hydra's with all the words."""
    keys = [word.partition("=")[0] for word in words]
    as_hydra = [word if key in GROUPS else f"++{word}" for word, key in zip(words, keys, strict=True)]
    with initialize_config_dir(config_dir=str(conf_dir()), version_base="1.3"):
        composed = hydra_compose("config", as_hydra)
    whole = OmegaConf.to_container(composed, resolve=True)
    ours, _ = compose._compose(list(words))
    assert ours == whole
