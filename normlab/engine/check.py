"""What a task says of itself, checked against its model before any work."""

from collections import Counter
from collections.abc import Collection

from normlab.errors import UserError, unknown
from normlab.tasks.parts import Parts
from normlab.tasks.task import Phase, Task


def check_task(task: Task, target: str, parts: Parts, trainable: Collection[str]) -> None:
    """Raise UserError, in one line, where a task's splits, phases and parts do not go together.

    Args:
        task: has built its model.
        target: that made it.
        parts: of the model.
        trainable: names of the parameters that are not frozen.
    """
    if not task.tested or not task.phases:
        raise UserError(f"_target_={target}: expected a split in `tested` and a phase in `phases`")
    for split in (*task.tested, *(phase.split for phase in task.phases)):
        if split not in task.splits:
            raise unknown(f"_target_={target}: split", split, task.splits)
    names = Counter(phase.name for phase in task.phases)
    for name, count in names.items():
        if count > 1:
            raise UserError(f"_target_={target}: {count} phases are called {name}; expected a name for each")
    seen: dict[str, Phase] = {}
    for phase in task.phases:
        for part in phase.parts:
            if part not in parts.prefixes:
                raise unknown(f"phase {phase.name}: part", part, parts.prefixes)
        own = trained_by(phase, parts, trainable)
        if not own:
            raise UserError(f"phase {phase.name} has nothing to train: all parameters of its parts are frozen")
        for name in sorted(own):
            other = seen.setdefault(name, phase)
            if other is not phase and (other.skips or phase.skips):
                raise UserError(
                    f"phases {other.name} and {phase.name} both train {name}; a phase that skips parameters needs them "
                    "for itself"
                )


def trained_by(phase: Phase, parts: Parts, trainable: Collection[str]) -> set[str]:
    """Names of the parameters that a phase trains."""
    return {name for name in trainable if not phase.parts or {*phase.parts} & {*parts.chain(name)}}
