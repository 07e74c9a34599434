"""TensorBoard: event files in <run>/tensorboard, which `tensorboard --logdir results/runs` shows."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import yaml

from normlab.dynamics.ratios import MOMENTS, Row, averages_by_key
from normlab.errors import UserError
from normlab.trackers.tracker import Guard

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoard:
    """Scalars of what is measured and of the averaged ratios, histograms of the ratios over layers, figures, settings.

    A run that goes on writes another file, which takes the place of what was logged behind its checkpoint.

    Args:
        run: folder of the run.
        run_id: of no use here.
        name: of no use here; TensorBoard calls a run by its folder.
        config: nested, as in config.yaml.

    Raises:
        UserError: the extra `tensorboard` is not installed.
    """

    shows_images: ClassVar = True

    def __init__(self, run: Path, run_id: str, name: str, config: dict[str, Any]) -> None:
        if find_spec("tensorboard") is None:
            raise UserError("tracker=tensorboard: it needs a further package; pip install 'normlab[tensorboard]'")
        self._folder, self._config = run / "tensorboard", config
        self._writer: SummaryWriter | None = None
        self._try = Guard("TensorBoard")

    def log(self, values: dict[str, float], step: int) -> None:
        self._try(lambda: self._add_scalars(values, step))

    def ratios(self, rows: Sequence[Row], epoch: float, step: int) -> None:
        self._try(lambda: self._add_ratios(rows, step))

    def image(self, key: str, path: Path, step: int) -> None:
        self._try(lambda: self._add_image(key, path, step))

    def finish(self, summary: dict[str, Any]) -> None:
        def finish() -> None:
            writer, step = self._opened(summary.get("updates", 0)), summary.get("updates", 0)
            for estimator, metrics in summary.get("metrics", {}).items():
                for key, value in metrics.items():
                    writer.add_scalar(f"summary/{estimator}/{key}", value, step)
            writer.close()

        self._try(finish)

    def _opened(self, step: int) -> "SummaryWriter":
        if self._writer is None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder), purge_step=step)
            settings = yaml.safe_dump(self._config, sort_keys=False)
            self._writer.add_text("settings", "\n".join(f"    {line}" for line in settings.splitlines()), step)
        return self._writer

    def _add_scalars(self, values: dict[str, float], step: int) -> None:
        writer = self._opened(step)
        for key, value in values.items():
            writer.add_scalar(key, value, step)

    def _add_ratios(self, rows: Sequence[Row], step: int) -> None:
        import numpy as np

        self._add_scalars(averages_by_key(rows), step)
        for moment in MOMENTS:
            for scope in dict.fromkeys(scope for row in rows for scope in row[moment]):
                of_layers = np.array([row[moment][scope] for row in rows if scope in row[moment]])
                self._opened(step).add_histogram(f"ratios_of_layers/{moment}/{scope}", of_layers, step)

    def _add_image(self, key: str, path: Path, step: int) -> None:
        import numpy as np
        from PIL import Image

        with Image.open(path) as image:
            self._opened(step).add_image(key, np.asarray(image.convert("RGB")), step, dataformats="HWC")
