"""normlab: reproduces papers on normalization layers. `normlab --help` is the way in.

In other people's code: normlab.norm.convert.convert puts the layers into a model, and after weights were averaged
normlab.batch_average(model, loader) measures their statistics anew.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from normlab.engine.batch_average import batch_average as batch_average

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Imported when it is asked for: the command's first words come without torch."""
    if name == "batch_average":
        from normlab.engine.batch_average import batch_average

        return batch_average
    raise AttributeError(f"module 'normlab' has no attribute '{name}'")
