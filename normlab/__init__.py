"""normlab: reproduces papers on normalization layers. `normlab --help` is the way in.

In other people's code (docs/library.md):

    model = timm.create_model("resnet50", num_classes=10)
    normlab.convert(model, "sn")              # its batch norms become Switchable Normalization, in place
    normlab.batch_average(model, loader)      # after training: the statistics for evaluation
    normlab.ratios(model)["bn1"]["mean"]      # {"in": 0.31, "ln": 0.35, "bn": 0.34}
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from normlab.api import (
        convert,
        create_lstm_cell,
        create_norm_layer,
        norms,
        ratios,
        receptive_fields,
        weights,
    )
    from normlab.engine.batch_average import batch_average
    from normlab.errors import UserError
    from normlab.exchange.folding import fold
    from normlab.norm.convert import Conversion, NothingReplacedWarning
    from normlab.norm.layer import Normalizer
    from normlab.norm.lstm import NormLSTMCell
    from normlab.replicas import RunningStatistics, set_replicas

__version__ = "0.1.0"
__all__ = [
    "Conversion",
    "NormLSTMCell",
    "Normalizer",
    "NothingReplacedWarning",
    "RunningStatistics",
    "UserError",
    "batch_average",
    "convert",
    "create_lstm_cell",
    "create_norm_layer",
    "fold",
    "norms",
    "ratios",
    "receptive_fields",
    "set_replicas",
    "weights",
]

_ELSEWHERE = {
    "Conversion": "normlab.norm.convert",
    "NormLSTMCell": "normlab.norm.lstm",
    "Normalizer": "normlab.norm.layer",
    "NothingReplacedWarning": "normlab.norm.convert",
    "RunningStatistics": "normlab.replicas",
    "UserError": "normlab.errors",
    "batch_average": "normlab.engine.batch_average",
    "fold": "normlab.exchange.folding",
    "set_replicas": "normlab.replicas",
}


def __getattr__(name: str) -> Any:
    """Imported when it is asked for: the command's first words come without torch."""
    if name not in __all__:
        raise AttributeError(f"module 'normlab' has no attribute '{name}'")
    return getattr(import_module(_ELSEWHERE.get(name, "normlab.api")), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
