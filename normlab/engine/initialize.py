"""What a model begins from: `init` for all of it, or parts.NAME.init for a part."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from torch import Tensor, nn

from normlab import schema
from normlab.config import Config
from normlab.config.initial import Initial
from normlab.engine.weights import check_values
from normlab.errors import UserError
from normlab.norm.layer import Normalizer
from normlab.reading import read_json
from normlab.runs.checkpoint import load_tensors
from normlab.runs.folder import RunFolder
from normlab.tasks.parts import Parts, fits
from normlab.tasks.task import Task

LOGITS = ("mean_logits", "var_logits")  # parameters of a norm layer whose ratios they are
_WRAPPERS = ("module", "_orig_mod")
Prefixes = Mapping[str, Sequence[str]]


def initialize(model: nn.Module, task: Task, parts: Parts, config: Config) -> list[str]:
    """Load what fits by name and shape of what each part's `init` names; returns the names of what found no place.

    A tensor fits by its own name, or by that within its part: a classifier's `conv1` is a detector's
    `backbone.body.conv1` where both call it backbone. What DDP and torch.compile add to names does not count. So
    weights go from one normalizer to another (SN to SyncSN, BN to frozen BN), and what only one of them has stays
    behind.

    Raises UserError if there are no such weights, if none fits, or if a layer with hard ratios gets no logits: what it
    would choose then, nothing has learned.
    """
    own = model.state_dict()
    by_init: dict[str, list[str]] = {} if config.init == "none" else {config.init: []}  # helpers may want it
    for name in own:
        init = parts.settings_of(name).get("init", config.init)
        if init != "none":
            by_init.setdefault(init, []).append(name)
    unused: list[str] = []
    for init, names in by_init.items():
        path = _weights(init, config)
        given = _unwrapped(load_tensors(path), own)
        state = task.initial(given, model)
        has_helped = len(state) < len(given)
        if not names and not has_helped:
            continue  # each part has its own
        if Initial.parse(init).only_ratios:
            state = {name: t for name, t in state.items() if name.rpartition(".")[2] in LOGITS}
        by_part = [part for part, settings in config.parts.items() if settings.get("init") == init]
        sources = _sources(own, names, state, parts, _prefixes_of(init, config, by_part))
        fitting = {name: state[source] for name, source in sources.items()}
        if not fitting and not has_helped:
            raise UserError(f"init={init}: none of its {len(state)} tensors fits the model")
        _check_hard(model, init, set(names), fitting)
        check_values(path, ((sources[name], tensor, own[name]) for name, tensor in fitting.items()))
        model.load_state_dict(fitting, strict=False)
        left = sorted(state.keys() - {sources[name] for name in fitting})
        unused += left if len(by_init) == 1 else [f"{init}: {name}" for name in left]
    return unused


def _unwrapped(state: Mapping[str, Tensor], own: Collection[str]) -> dict[str, Tensor]:
    """Without the names of DDP (`module`) and torch.compile (`_orig_mod`) around a network or a piece of it.

    A name that the model has, or that would be another's then, stays.
    """

    def plain(name: str) -> str:
        return ".".join(word for word in name.split(".") if word not in _WRAPPERS)

    counts = Counter(map(plain, state))
    return {name if name in own or counts[plain(name)] > 1 else plain(name): t for name, t in state.items()}


def _sources(
    own: Mapping[str, Tensor], names: Sequence[str], state: Mapping[str, Tensor], parts: Parts, theirs: Prefixes
) -> dict[str, str]:
    """Name in the model -> name of the tensor that fits it, the same name first; none is taken twice."""
    found: dict[str, str] = {}
    for name in names:
        candidates = [name]
        for part in reversed(parts.chain(name)):
            prefix = max((p for p in parts.prefixes[part] if fits(p, name)), key=len)
            inside = name.removeprefix(prefix).removeprefix(".")
            candidates += [f"{p}.{inside}".lstrip(".") for p in theirs.get(part, ())]
        fitting = (c for c in candidates if c in state and state[c].shape == own[name].shape)
        source = next(fitting, None)
        if source is not None and source not in found.values():
            found[name] = source
    return found


def _prefixes_of(init: str, config: Config, by_part: Collection[str]) -> Prefixes:
    """Where the parts of the run that `init` names begin, as its summary says.

    A file does not say: then the parts that name it themselves (`by_part`) begin at its root.
    """
    path = Initial.parse(init).path(Path(config.out))
    if path is None or not path.is_dir():
        return {part: ("",) for part in by_part}
    summary = RunFolder(path).summary_file
    fields = {"parts": schema.Parameter(Mapping[str, list[str]], {})}
    return read_json(summary, fields).get("parts", {}) if summary.is_file() else {}


def _check_hard(model: nn.Module, init: str, names: set[str], fitting: Mapping[str, Tensor]) -> None:
    hard = [name for name, layer in model.named_modules() if isinstance(layer, Normalizer) and layer.hard]
    for missing in sorted({f"{name}.{logits}" for name in hard for logits in LOGITS} & names - fitting.keys()):
        raise UserError(f"init={init}: {missing} is not in it, or of another shape; hard ratios are chosen by it")


def _weights(init: str, config: Config) -> Path:
    """The file that `init` names. Raises UserError if it is not there."""
    initial = Initial.parse(init)
    path = initial.path(Path(config.out))
    if path is None:
        raise UserError(f"init={init}: there is no run of this id in {config.out}")
    if path.is_dir():
        run, path = path, RunFolder(path).weights_at(initial.at)
        if not path.is_file() and initial.at == 1:
            raise UserError(f"init={init}: the run has no weights yet; finish it first")
        if not path.is_file():
            kept = ", ".join(sorted(file.stem for file in RunFolder(run).snapshots.glob("*.safetensors")))
            raise UserError(
                f"init={init}: {run.name} has kept {kept or 'no snapshots'}; "
                f"train it with snapshots=[{initial.at:g}], and rerun=true if it is past that"
            )
        path = RunFolder(run).whole(path)
    if path.suffix != ".safetensors":
        raise UserError(f"init={init}: expected a run, or a .safetensors file")
    return path
