"""`normlab data prepare NAME` and `normlab data verify NAME`: the dataset's own class does the work."""

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from normlab import schema
from normlab.config import choices, file_of, node_of, settings_of
from normlab.data.dataset import SPLITS
from normlab.data.download import one_line
from normlab.errors import UserError, unknown
from normlab.reading import naming
from normlab.schema import named


def prepare(name: str, root: Path | None = None) -> str:
    """Make a dataset ready: download it, or unpack the archives that the user put into root.

    Args:
        name: of a file in conf/data.
        root: folder of this dataset; by default the one of its configuration.

    Returns:
        One line that says what there is. Data that can be read already are left as they are.

    Raises:
        UserError: no such dataset, no network, or archives are missing or damaged; says what to put where.
    """
    dataset, folder = _locate(name, root)
    if folder is None:
        return f"{name}: {_sizes(name)}, nothing to prepare"
    try:
        sizes = _sizes(name, root=str(folder))
    except UserError:
        dataset.prepare(folder)
        sizes = _sizes(name, root=str(folder))
    return f"{name}: {sizes} in {folder}"


def verify(name: str, root: Path | None = None) -> list[str]:
    """What is wrong with a dataset on disk, one line each; empty when all is well.

    Looks at the layout, the counts of classes and images, the labels, and decodes every file.

    Raises:
        UserError: no such dataset.
    """
    dataset, folder = _locate(name, root)
    problems = [] if folder is None else dataset.verify(folder)
    return [one_line(problem.encode(errors="backslashreplace").decode()) for problem in problems]  # odd names of files


def _locate(name: str, root: Path | None) -> tuple[Any, Path | None]:
    """The class of a dataset, and its folder unless the data come with the program."""
    if name not in choices("data"):
        raise unknown("dataset", name, choices("data"))
    node, file = node_of("data", name), file_of("data", name)
    with naming(file):
        schema.signature(str(node["_target_"]))
        dataset, default = named(node["_target_"]), default_root(name)
        if default is not None and not (hasattr(dataset, "prepare") and hasattr(dataset, "verify")):
            raise UserError(f"_target_={node['_target_']}: expected a dataset with `prepare` and `verify`")
    return dataset, None if default is None else Path(root or default)


def default_root(name: str) -> str | None:
    """Where a dataset lies, as its file says; None where it comes with the program. Raises UserError."""
    try:
        node = OmegaConf.create({"root": node_of("data", name).get("root")})  # which may say ${oc.env:NORMLAB_DATA}
        found = OmegaConf.to_container(node, resolve=True)
    except (OmegaConfBaseException, ValueError) as error:
        raise UserError(f"root: {str(error).partition(chr(10))[0]}") from None
    return schema.check(found, {"root": schema.Parameter(str | None)})["root"]  # type: ignore[arg-type]


def _sizes(name: str, **options: str) -> str:
    """Of the splits, under the settings of the dataset's file."""
    with naming(file_of("data", name)):
        settings = settings_of("data", name) or {}
    dataset = schema.bind(settings | options)
    train, val = (dataset(split, 0) for split in SPLITS)
    return f"{len(train)} training and {len(val)} validation {getattr(train, 'called', 'images')}"
