"""`normlab figure NAME RUN ... [KEY=VALUE ...]`: draw a figure of conf/figure from the records of runs."""

from pathlib import Path

from normlab import schema
from normlab.config import choices, file_of, node_of
from normlab.errors import UserError, nearest, unknown
from normlab.reading import naming
from normlab.runs.folder import RunFolder
from normlab.schema import Parameter
from normlab.words import parse

RESULTS = Path("results/figures")


def figure(words: list[str], runs_folder: str) -> int:
    """Draw one figure and say where it is. Raises UserError, in one line, before anything is drawn or written.

    Args:
        words: the figure's name, runs, and the figure's settings; `out` is the file, `runs` where runs go by name.
        runs_folder: the default of `runs`.
    """
    known = choices("figure")
    plain = [word for word in words if "=" not in word]
    if not plain:
        raise UserError(f"expected the name of a figure and runs; {nearest('', known)}")
    name, names = plain[0], plain[1:]
    if name not in known:
        raise unknown("figure", name, known)
    node = node_of("figure", name)
    with naming(file_of("figure", name)):
        parameters = _parameters(node)
    parameters |= {"out": Parameter(str | None, None), "runs": Parameter(str, runs_folder)}
    settings = parse([word for word in words if "=" in word], parameters)
    folder = Path(settings.pop("runs"))
    runs = [RunFolder.find(run, folder, "runs") for run in names]
    out = _file(settings.pop("out"), name, runs)

    from normlab.figures.style import save
    from normlab.runs.records import Run

    try:
        drawn = schema.bind({"_target_": node["_target_"]} | settings)([Run.load(run) for run in runs])
    except UserError as error:
        raise UserError(f"figure {name}: {error}") from None
    save(drawn, out)
    print(f"written: {out}")
    return 0


def _parameters(node: dict[str, object]) -> dict[str, Parameter]:
    """Of the target, with the file's own values as defaults."""
    signature = schema.signature(str(node["_target_"]))
    own = {key: value for key, value in node.items() if key != "_target_"}
    own = schema.check(own, {key: parameter for key, parameter in signature.items() if key in own} or signature)
    return {key: Parameter(parameter.hint, own.get(key, parameter.default)) for key, parameter in signature.items()}


def _file(given: str | None, name: str, runs: list[RunFolder]) -> Path:
    """Where the figure goes: as given, or into the run's folder, or, of several runs, results/figures."""
    from normlab.figures.style import name_of_file

    return name_of_file(Path(given) if given else (runs[0].path if len(runs) == 1 else RESULTS) / f"{name}.png")
