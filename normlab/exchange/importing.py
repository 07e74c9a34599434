"""A released checkpoint as a run: a folder whose weights `show`, `eval`, `estimate`, `figure` and `init` take.

The run was never trained here. It has an id of its own, of its settings and of the file's bytes, so that it is never
taken for a trained one, and its status is "imported".
"""

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from normlab.config import Config, identity, load, run_name
from normlab.dynamics import ratios
from normlab.engine.build import build
from normlab.engine.session import Session
from normlab.engine.summary import summarize
from normlab.engine.weights import check_values
from normlab.errors import UserError
from normlab.exchange.layouts import Released, read
from normlab.processes.signals import Stop
from normlab.progress import silent
from normlab.replicas import Share
from normlab.runs import checkpoint
from normlab.runs.folder import RunFolder
from normlab.runs.lock import locked
from normlab.writing import append_jsonl, write_json

# The protocol that they were trained by has more to it (scale=imagenet_sn). Synthetic images are always there, and
# ratios need none; data=imagenet is for those who have it, and want an accuracy.
_COMMON = ["tracker=none", "estimator=moving_average"]
_PROTOCOL = ["data=synthetic", "data.size=224", "batch=8x32", *_COMMON]
_OF_DETECTORS = ["data=synthetic_boxes", "data.size=224", "batch=8x2", *_COMMON]
_CLASSES = 1000
_FEATURES = (512, 2048)  # of a ResNet's classifier
_SHOWN = 3


def import_run(path: Path, words: list[str]) -> tuple[RunFolder, list[str]]:
    """Make the run's folder; `words` are settings, beyond those that the file tells of.

    Returns the folder, and what there is to say, a line each. Raises UserError on a file that cannot be read or does
    not fit the model.
    """
    released = read(path)
    config = _config(released, words)
    digest = _digest(path)
    run_id = hashlib.sha256(f"{identity(config)} {digest}".encode()).hexdigest()[:8]
    folder = RunFolder(Path(config.out) / f"{run_name(config)}-{run_id}")
    experiment = build(config, weights_follow=True)
    random = _fill(experiment.model, released, config, path)
    with locked(folder.path):
        folder.create(config, run_id)
        share = Share(config.replicas, config.per_replica)
        session = Session(config, folder, experiment, torch.device("cpu"), share, silent, Stop())
        _record(session, {"file": path.name, "sha256": digest, "layout": released.layout})
    return folder, [f"{released.layout} layout: {' '.join(released.words + words)}", *_remarks(released, random)]


def _config(released: Released, words: list[str]) -> Config:
    given = {word.partition("=")[0] for word in words}
    protocol = _OF_DETECTORS if released.layout == "detector" else _PROTOCOL
    own = [word for word in (*protocol, *released.words) if word.partition("=")[0] not in given]
    own.append(f"data.num_classes={_classes(released.tensors)}")
    for group in ("data", "norm", "weight", "model"):  # whose settings go with what was chosen in its place
        if group in given:
            own = [word for word in own if not word.startswith(f"{group}.")]
    return load([*own, *words])


def _classes(tensors: Mapping[str, Tensor]) -> int:
    """Of the file's classifier, unless it is none: then no network is built for whatever number it says.

    A detector has one output more, for the background.
    """
    scores = tensors.get("roi_heads.box_predictor.cls_score.bias")
    if scores is not None:
        return min(max(len(scores) - 1, 1), _CLASSES) if scores.ndim == 1 else _CLASSES
    weight, bias = (tensors.get(f"fc.{name}", torch.empty(0)) for name in ("weight", "bias"))
    fits = weight.ndim == 2 and weight.shape[1] in _FEATURES and bias.shape == weight.shape[:1]
    return len(bias) if fits else _CLASSES


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _fill(model: nn.Module, released: Released, config: Config, path: Path) -> list[str]:
    """Load the file's tensors; returns the names of those that the model alone has, and that stay random."""
    state = model.state_dict()
    names = {_plain(name): name for name in state}
    own = {plain: state[name] for plain, name in names.items()}
    random = _check_fit(released, own, config, path)
    check_values(path, ((released.names[plain], t, own[plain]) for plain, t in released.tensors.items()))
    model.load_state_dict({names[name]: t for name, t in released.tensors.items()}, strict=False)
    return random


def _record(session: Session, origin: dict[str, str]) -> None:
    """Write the weights and records of an imported run."""
    folder, experiment = session.folder, session.experiment
    checkpoint.save_tensors(folder.weights, experiment.model.state_dict())
    rows = experiment.ratios()
    if ratios.switchable(rows):
        folder.ratios.unlink(missing_ok=True)
        append_jsonl(folder.ratios, [{"epoch": 0.0, "step": 0, "layers": rows}])
    outcome = {"updates": 0, "diverged_at": None, "seconds": 0.0, "origin": origin}
    write_json(folder.summary_file, summarize(session, "imported", {}) | outcome, sealed=True)
    folder.end("imported", 0)


def _remarks(released: Released, random: list[str]) -> list[str]:
    said = [f"not in the file, and random: {_some(random)}"] if random else []
    if released.left_out:
        said.append(f"left out, since it is not of the backbone: {released.left_out} tensors")
    if released.undecided:
        said.append(f"layers that had not become sparse yet, whose largest ratio counts alone: {released.undecided}")
    return said


def _plain(name: str) -> str:
    """The name of a reparametrized weight, as the authors store it: before it is standardized."""
    return name.replace(".parametrizations.weight.original", ".weight")


def _check_fit(released: Released, own: dict[str, Tensor], config: Config, path: Path) -> list[str]:
    """Raise UserError unless the tensors are those of the model.

    Returns the names of a classifier that a detector does not have.
    """
    theirs = released.tensors
    wanted = {name for name in own if not name.endswith("num_batches_tracked")}  # counts are not in the files
    missing, random = sorted(wanted - theirs.keys()), []
    if released.layout == "detection" and all(name.startswith("fc.") for name in missing):
        random, missing = missing, []
    shapes = [
        f"{name} {tuple(theirs[name].shape)}, not {tuple(own[name].shape)}"
        for name in sorted(wanted & theirs.keys())
        if theirs[name].shape != own[name].shape
    ]
    problems = {
        "not in the model": sorted(theirs.keys() - wanted),
        "not in the file": missing,
        "of another shape": shapes,
    }
    found = [f"{what}: {_some(names)}" for what, names in problems.items() if names]
    if found:
        chosen = " ".join(f"{group}={config.choices[group]}" for group in ("model", "norm", "weight"))
        raise UserError(f"{path} does not fit {chosen}: {'; '.join(found)}. It tells of {' '.join(released.words)}")
    return random


def _some(names: Iterable[str]) -> str:
    """The first few."""
    names = list(names)
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{', '.join(names[:_SHOWN])}{more}"
