"""What the server that a sweep's cells fork from loads, so that no cell waits for torch (see sweep.py).

A SIGTERM to all processes of a sweep is for the sweep and its cells; the server outlives them, to tell of their ends.
"""

import signal

import normlab.figures.draw
import normlab.launch.life
import normlab.tasks.classification  # noqa: F401

signal.signal(signal.SIGTERM, signal.SIG_IGN)
