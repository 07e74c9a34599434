"""normlab: reproduces papers on normalization layers. `normlab --help` is the way in."""

__version__ = "0.1.0"
