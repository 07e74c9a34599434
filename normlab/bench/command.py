"""`normlab bench NAME [KEY=VALUE ...]`: measure, print tables, and leave every figure in a JSON file.

A benchmark is the function `bench` of a module here. Its keyword-only parameters are its options, as with the targets
of conf/; it takes the progress to report to and gives rows, and the module's `tables` makes tables of such rows.
"""

import ast
from importlib import import_module
from pathlib import Path

from normlab import schema
from normlab.errors import UserError, unknown
from normlab.schema import Parameter
from normlab.words import parse

BENCHES = ("norm", "fusion", "step", "run", "threads", "train", "data", "loader", "scenes", "start")
RESULTS = "results/bench"


def run(words: list[str]) -> int:
    """Measure one benchmark; returns the exit status. Raises UserError, in one line, before any work."""
    if not words or words[0] not in BENCHES:
        raise (
            UserError("expected a benchmark: " + ", ".join(BENCHES))
            if not words
            else unknown("benchmark", words[0], BENCHES)
        )
    name, given = words[0], words[1:]
    if given == ["options"]:
        print(describe(name))
        return 0
    target = f"normlab.bench.{name}"
    options = parse(given, schema.signature(f"{target}.bench") | {"out": Parameter(str, f"{RESULTS}/{name}.json")})
    out = Path(options.pop("out"))
    _check_out(out)

    module = import_module(target)
    from normlab.bench.machine import machine
    from normlab.bench.tables import show
    from normlab.progress import progress_bar

    with progress_bar() as progress:
        rows = module.bench(progress, **options)
    result = {"bench": name, "command": " ".join(["normlab bench", *words]), "options": options}
    result |= {"machine": machine(options.get("device", "auto")), "rows": rows}
    show(result, module.tables(rows), out)
    return 0


def describe(name: str) -> str:
    """What a benchmark measures and its options, from its docstring. Nothing is imported."""
    source = (Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8")
    functions = {n.name: n for n in ast.parse(source).body if isinstance(n, ast.FunctionDef)}
    return str(ast.get_docstring(functions["bench"]))


def _check_out(out: Path) -> None:
    if out.is_dir() or out.suffix != ".json":
        raise UserError(f"out={out}: expected a .json file")
    parent = next(folder for folder in out.absolute().parents if folder.exists())
    if not parent.is_dir():
        raise UserError(f"out={out}: {parent} is no folder")
