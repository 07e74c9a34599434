"""One of several processes of a run, started by the elastic launcher: python -m normlab.launch.rank FOLDER SECONDS.

First of all it asks to die with its launcher: what follows imports torch, which takes seconds, and a rank that outlived
a killed launcher would train on without the run's lock.
"""

import os
import sys
from datetime import timedelta
from pathlib import Path

from normlab.processes.lifetimes import LAUNCHER, die_with_parent

if __name__ == "__main__":
    die_with_parent(int(os.environ.get(LAUNCHER, 0)))
    from normlab.processes.threads import cores

    here = max(1, cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))
    os.environ.setdefault("OMP_NUM_THREADS", str(here))
    from normlab.config import import_own_modules
    from normlab.launch.peer import main
    from normlab.runs.folder import RunFolder

    import_own_modules()
    sys.exit(main(RunFolder(Path(sys.argv[1])), timedelta(seconds=int(sys.argv[2]))))
