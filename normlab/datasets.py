"""`normlab data prepare NAME` and `normlab data verify NAME`: the dataset's own class does the work."""

from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from normlab.config import choices, conf_dir
from normlab.data.download import one_line
from normlab.errors import UserError, unknown
from normlab.reading import read_yaml
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
        return f"{name}: {_sizes(dataset)}, nothing to prepare"
    try:
        sizes = _sizes(dataset, root=str(folder))
    except UserError:
        dataset.prepare(folder)
        sizes = _sizes(dataset, root=str(folder))
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
    node = OmegaConf.create(read_yaml(conf_dir() / "data" / f"{name}.yaml"))  # root may say ${oc.env:NORMLAB_DATA}
    try:
        default = OmegaConf.select(node, "root")
    except OmegaConfBaseException as error:
        raise UserError(f"data={name}: root: {str(error).partition(chr(10))[0]}") from None
    return named(node["_target_"]), None if default is None else Path(root or default)


def _sizes(dataset: Any, **options: str) -> str:
    train, val = (len(dataset(split, 0, **options)) for split in ("train", "val"))
    return f"{train} training and {val} validation images"
