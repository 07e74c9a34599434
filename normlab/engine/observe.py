"""What a run records of single updates, if `record` says so: statistics of the last ones, gradients of some.

statistics.jsonl   of each of the last `record.statistics` updates: BN's and EN's statistics of the first replica, as
                   the first rank sees them, which hosts it (normlab.dynamics.statistics)
gradients.jsonl    of the first update of each epoch: what Weight Standardization takes from its gradients, joined over
                   all passes and ranks (normlab.dynamics.lipschitz)

Training is the same, bit for bit, with them and without.
"""

from contextlib import ExitStack

from normlab.dynamics import lipschitz, statistics
from normlab.engine.session import Session
from normlab.processes import devices
from normlab.writing import append_jsonl


class Observer:
    """Looks at the passes of an update: `begin` ahead of its first one, `end` after its last."""

    def __init__(self, session: Session, per_epoch: int, total: int) -> None:
        self.session, self.per_epoch, self.total = session, per_epoch, total
        self._hooks = ExitStack()
        self._statistics: list[statistics.Row] = []
        self._gradients: dict[str, lipschitz.Observed] = {}

    def begin(self, update: int) -> None:
        """Watch an update, counted from 1, if it is to be recorded."""
        wanted, experiment = self.session.config.record, self.session.experiment
        if self.session.is_first and update > self.total - wanted.statistics:
            self._statistics = self._hooks.enter_context(statistics.observed(experiment.model, experiment.sites))
        if wanted.gradients and (update - 1) % self.per_epoch == 0:
            self._gradients = self._hooks.enter_context(lipschitz.observed(experiment.model))

    def end(self, update: int) -> None:
        """Write what was seen of it."""
        self._hooks.close()
        for name in sorted(self._gradients):
            seen = self._gradients[name]
            seen.gradient_OI = devices.sum_over_ranks(seen.gradient_OI.contiguous())
        if self.session.is_first:
            folder, moment = self.session.folder, {"step": update, "epoch": update / self.per_epoch}
            rows = {folder.statistics: self._statistics, folder.gradients: lipschitz.rows(self._gradients)}
            for file, layers in rows.items():
                if layers:
                    append_jsonl(file, [moment | {"layers": layers}])
        self._statistics, self._gradients = [], {}
