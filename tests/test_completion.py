"""Completion of words in a shell, by its own protocol: bash calls the function, and takes COMPREPLY."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from normlab.cli.commands import command_line
from normlab.config import choices, load
from normlab.data.published import data_may_be_absent

ROOT = Path(__file__).resolve().parents[1]
# bash takes a word apart at its COMP_WORDBREAKS, of which `=` is one.
BASH = """
eval "$(_NORMLAB_COMPLETE=bash_source normlab)"
compopt() {{ :; }}  # bash has it while it completes only
COMP_WORDS=({words})
COMP_CWORD=$(( ${{#COMP_WORDS[@]}} - 1 ))
_normlab_completion normlab
printf '%s\\n' "${{COMPREPLY[@]}}"
"""


def completed(line: str, cwd: Path) -> list[str]:
    """What bash offers for the last word of a line."""
    words = line.replace("=", " = ").split()
    words += [""] * line.endswith((" ", "="))
    command = cwd / "bin" / "normlab"
    command.parent.mkdir(exist_ok=True)
    command.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m normlab "$@"\n')
    command.chmod(0o755)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PATH": f"{command.parent}:{os.environ['PATH']}"}
    script = BASH.format(words=" ".join(map(shlex.quote, words)))
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, cwd=cwd, env=environment, timeout=60)
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout.split()


@pytest.mark.parametrize(
    ("line", "some"),
    [
        ("normlab tr", ["train"]),
        ("normlab train nor", ["norm=", "norm.", "norm_dropout="]),
        ("normlab train norm=sn_", ["sn_hard", "sn_tied"]),
        ("normlab train norm=", ["bn", "sn"]),
        ("normlab train norm=bn,g", ["bn,gn"]),
        ("normlab train optim=adam optim.be", ["optim.beta1="]),
        ("normlab train precision=f", ["fp32", "fp16"]),
        ("normlab train batch_average.variance=", ["mean", "population"]),
        ("normlab train --cf", ["--cfg"]),
        ("normlab show ", ["digits-mine-1a2b3c4d"]),
        ("normlab reproduce tab", ["table2"]),
        ("normlab reproduce table2 scale=d", ["digits"]),
        ("normlab figure ratio_", ["ratio_curves"]),
        ("normlab data verify cifar", ["cifar10", "cifar100"]),
        ("normlab data sh", ["show"]),
        ("normlab estimate x variance=p", ["population"]),
    ],
)
def test_bash_completes(line: str, some: list[str], tmp_path: Path) -> None:
    run = tmp_path / "results" / "runs" / "digits-mine-1a2b3c4d"
    run.mkdir(parents=True)
    (run / "run.json").touch()
    offered = completed(line, tmp_path)
    assert set(some) <= set(offered), offered
    typed = line.rpartition("=")[2] if "=" in line.split(" ")[-1] else line.rpartition(" ")[2]
    assert all(word.startswith(typed) for word in offered)


def test_bash_is_given_all_files_of_a_group(tmp_path: Path) -> None:
    assert completed("normlab train model=", tmp_path) == list(choices("model"))


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_a_script(shell: str) -> None:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "_NORMLAB_COMPLETE": f"{shell}_source"}
    done = subprocess.run([sys.executable, "-m", "normlab"], capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and "_NORMLAB_COMPLETE" in done.stdout


@pytest.mark.parametrize("verb", command_line().commands)
def test_each_verb_has_help_of_its_own_with_examples(verb: str) -> None:
    shown = CliRunner().invoke(command_line(), [verb, "--help"]).output
    command = command_line().commands[verb]
    assert f"Usage: normlab {verb}" in shown.replace("Usage: root", "Usage: normlab")
    assert all(option in shown for param in command.params for option in param.opts if option.startswith("-"))
    examples = [line.strip() for line in shown.partition("Examples:")[2].splitlines() if line.strip()]
    assert examples and all(example.startswith(f"normlab {verb}") for example in examples)
    if verb in ("train", "plan"):
        for example in examples:
            words = [word for word in shlex.split(example)[2:] if word not in ("--cfg", "job", "throughput=400")]
            if not {"-m", "--config-dir"} & {*words}:
                with data_may_be_absent():
                    load(words)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["train", "--config-name", "x"], "--config-name: this option of Hydra's is not here"),
        (["train", "-cn", "x"], "-cn: this option of Hydra's is not here"),
        (["train", "--cfg", "hydra"], "expected --cfg job"),
        (["plan", "--resolve"], "--cfg job prints what interpolations stand for already"),
        (["train", "--multrun"], "did you mean '--multirun'?"),
    ],
)
def test_what_there_is_not_of_hydras_is_said(words: list[str], said: str, capsys) -> None:
    from normlab.cli import main

    assert main(words) == 2
    err = capsys.readouterr().err
    assert err.startswith("normlab: ") and err.count("\n") == 1 and said in err


def test_info_says_where_settings_come_from(capsys) -> None:
    from normlab.cli import main

    assert main(["train", "norm=hn", "--info"]) == 0
    assert f"norm=hn: {ROOT / 'conf' / 'norm' / 'hn.yaml'}" in capsys.readouterr().out
