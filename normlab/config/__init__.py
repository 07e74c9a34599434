"""What a run is: its settings, from the words of a command line or from a run's own file. No torch here.

settings.py   the settings as one dataclass, and a run's identity
files.py      the files of conf/
compose.py    from words to settings, by Hydra
checks.py     what types and ranges cannot tell
initial.py    what `init` names
inputs.py     what a run reads beside its settings
"""

from normlab.config.compose import EXPERIMENT, check_hydra, load, parse, recorded, search_path, settings_of
from normlab.config.files import (
    choices,
    conf_dir,
    default_choice,
    file_of,
    files_of,
    import_own_modules,
    kinds_of,
    node_of,
    own_dir,
    target_of,
    use_own_dir,
)
from normlab.config.inputs import inputs, recorded_inputs
from normlab.config.settings import (
    EXECUTION,
    GROUPS,
    SETTINGS,
    Batch,
    BatchAverage,
    Checkpoint,
    Config,
    Record,
    identity,
    run_name,
)

__all__ = [
    "EXECUTION",
    "EXPERIMENT",
    "GROUPS",
    "SETTINGS",
    "Batch",
    "BatchAverage",
    "Checkpoint",
    "Config",
    "Record",
    "check_hydra",
    "choices",
    "conf_dir",
    "default_choice",
    "file_of",
    "files_of",
    "identity",
    "import_own_modules",
    "inputs",
    "kinds_of",
    "load",
    "node_of",
    "own_dir",
    "parse",
    "recorded",
    "recorded_inputs",
    "run_name",
    "search_path",
    "settings_of",
    "target_of",
    "use_own_dir",
]
