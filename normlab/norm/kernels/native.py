"""The operations of normlab.norm.ops in C++ (native*), for float32, float64, bfloat16 and float16 on CPU.

Beside them, what a training step calls without torch's dispatcher between: `forward` and `backward`, each a whole pass
of a normalizer in one call, and `advance`, a step of a moving average (see normlab.norm.kernels.direct).

The library is built at its first use, by the compiler of this machine for its processor (some seconds, once), and kept
in $NORMLAB_CACHE, or normlab/ in the user's cache folder; where another user could write there, it is built anew in a
folder of the process's own. It has a plain C interface and shares torch's OpenMP threads:
it runs as many as torch.get_num_threads(). Results do not depend on their number.
"""

import contextlib
import ctypes
import hashlib
import itertools
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from ctypes import c_double, c_int, c_int64, c_void_p
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from normlab.norm.algebra import Algebra
from normlab.norm.kernels import Backend, UnavailableError
from normlab.norm.kernels.place import safe_place

_SOURCE = Path(__file__).with_suffix(".cpp")
_HEADERS = sorted(_SOURCE.parent.glob("native_*.h"))
_FLAGS = (
    *("-std=c++17", "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math"),
    *("-fopenmp", "-shared", "-fPIC", "-Wno-psabi"),
)
_BUILD_SECONDS = 120
_TYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}  # as native.cpp numbers them
_ACTIVATION = (c_int, c_int64, c_int64, c_int64, c_int, c_int)  # type, N, C, S, channels last, threads
_ALGEBRA = (c_int, c_void_p, c_double)  # type, description, eps
_ARGUMENTS = {  # of each function: numbers, and how many addresses follow them
    "moments": (_ACTIVATION, 3),
    "affine": (_ACTIVATION, 5),
    "sums": (_ACTIVATION, 5),
    "input_gradient": (_ACTIVATION, 7),
    "mix": (_ALGEBRA, 12),
    "mix_backward": (_ALGEBRA, 17),
    "forward": ((*_ALGEBRA, c_int64, c_int, c_int), 10),  # and S, channels last, whether to measure
    "backward": ((*_ALGEBRA, c_int64, c_int), 13),  # and S, channels last
    "advance": ((c_int, c_int64, c_int64, c_double, c_double), 2),  # type, R, W, weight, factor
}


def load(device: torch.device) -> Backend:
    """The kernels, from a library that is built if it is not there yet.

    Raises:
        UnavailableError: there is no compiler, it fails, or the cache folder cannot be written.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="normlab-") as own:
            library = ctypes.CDLL(str(_build(Path(own))))  # what is loaded stays so without its file
    except OSError as error:
        raise UnavailableError(f"the built kernels cannot be used: {_line(error)}") from None
    kernels = _Kernels(library)
    return Backend("C++ kernels", {name: getattr(kernels, name) for name in _ARGUMENTS})


# ---- the library -----------------------------------------------------------------------------------------------------


def _build(own: Path) -> Path:
    """The library for this source, compiler and processor, built if need be; several processes may do so at once.

    It is code that runs as this user, so a place that others can write to is no cache: it is built in `own` then.
    """
    compiler = next((found for name in ("c++", "g++", "clang++") if (found := shutil.which(name))), None)
    if compiler is None:
        raise UnavailableError("no C++ compiler (c++, g++ or clang++)")
    built = os.stat(compiler)
    sources = [path.read_text() for path in (_SOURCE, *_HEADERS)]
    key = (sources, _FLAGS, os.path.realpath(compiler), built.st_size, built.st_mtime, _processor())
    path = _cache() / f"native-{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}.so"
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = safe_place(path, own)
    if not path.is_file():
        with tempfile.TemporaryDirectory(dir=path.parent) as folder:
            new = Path(folder) / path.name
            _compile([compiler, *_FLAGS, str(_SOURCE), "-o", str(new)])
            new.chmod(0o755)
            os.replace(new, path)
    return path


def _compile(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_BUILD_SECONDS, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        raise UnavailableError(f"{Path(command[0]).name} took more than {_BUILD_SECONDS} seconds") from None
    if done.returncode:
        errors = [line.strip() for line in done.stderr.splitlines() if "error" in line]
        raise UnavailableError(f"{Path(command[0]).name} failed: {(errors or [f'status {done.returncode}'])[0]}")


def _cache() -> Path:
    if folder := os.environ.get("NORMLAB_CACHE"):
        return Path(folder)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "normlab"
    except RuntimeError:  # no HOME, and a user without an entry in the list of users
        raise UnavailableError("there is no home folder to keep them in; NORMLAB_CACHE=FOLDER names one") from None


def _processor() -> str:
    """What -march=native depends on."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("flags", "Features")):
                return line
    return f"{platform.machine()} {platform.processor()}"


def _line(error: OSError) -> str:
    return (error.strerror or str(error)).splitlines()[0]


# ---- the kernels -----------------------------------------------------------------------------------------------------


def _channels_last(x: Tensor) -> bool | None:
    """How x (N, C, *L) lies in memory: channels last, or first; None for neither, and for what is not served."""
    if x.numel() == 0 or x.dtype not in _TYPES:
        return None
    if x.is_contiguous():
        return x.shape[2:].numel() == 1
    return True if x.movedim(1, -1).is_contiguous() else None


def _over(x: Tensor, last: bool) -> tuple[int, int, int, int, bool, int]:
    """What describes an activation to the library."""
    N, C = x.shape[:2]
    return _TYPES[x.dtype], N, C, x.numel() // (N * C), last, torch.get_num_threads()


def _like(dy: Tensor, x: Tensor) -> Tensor:
    """dy in the type and memory layout of x."""
    return dy if dy.stride() == x.stride() and dy.dtype == x.dtype else torch.empty_like(x).copy_(dy)


def _wide(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _dense(tensors: tuple[Tensor | None, ...], dtype: torch.dtype) -> list[Tensor | None]:
    """Statistics and parameters as the library reads them: rows may have come as views of a single one."""
    return [t if t is None or (t.dtype == dtype and t.is_contiguous()) else t.to(dtype).contiguous() for t in tensors]


def _call(function: Callable[..., None], *args: Any) -> None:
    """Tensors go as addresses, None as null."""
    function(*[arg.data_ptr() if isinstance(arg, Tensor) else arg for arg in args])


class _Kernels:
    """The operations, by the names and with the arguments of normlab.norm.ops; and the passes made of them."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self._functions = {}
        for name, (numbers, addresses) in _ARGUMENTS.items():
            function = self._functions[name] = library[f"normlab_{name}"]
            function.restype = None
            function.argtypes = (*numbers, *(c_void_p,) * addresses)

    def moments(self, x: Tensor) -> Any:
        last = _channels_last(x)
        if last is None:
            return NotImplemented
        mean_NC = x.new_empty(x.shape[:2], dtype=_wide(x))
        var_NC = torch.empty_like(mean_NC)
        _call(self._functions["moments"], *_over(x, last), x, mean_NC, var_NC)
        return mean_NC, var_NC

    def affine(self, x: Tensor, anchor: Tensor, scale: Tensor, shift: Tensor) -> Any:
        last = _channels_last(x)
        if last is None:
            return NotImplemented
        y = torch.empty_like(x)
        _call(self._functions["affine"], *_over(x, last), x, *_dense((anchor, scale, shift), _wide(x)), y)
        return y

    def sums(self, dy: Tensor, x: Tensor, anchor: Tensor) -> Any:
        last = _channels_last(x)
        if last is None:
            return NotImplemented
        first_NC = x.new_empty(x.shape[:2], dtype=_wide(x))
        second_NC = torch.empty_like(first_NC)
        rows = _dense((anchor,), _wide(x))
        _call(self._functions["sums"], *_over(x, last), _like(dy, x), x, *rows, first_NC, second_NC)
        return first_NC, second_NC

    def input_gradient(self, dy: Tensor, x: Tensor, mean: Tensor, scale: Tensor, dmean: Tensor, dvar: Tensor) -> Any:
        last = _channels_last(x)
        if last is None:
            return NotImplemented
        dx = torch.empty_like(x)
        rows = _dense((mean, scale, dmean, dvar), _wide(x))
        _call(self._functions["input_gradient"], *_over(x, last), _like(dy, x), x, *rows, dx)
        return dx

    def mix(
        self,
        mean_NC,
        var_NC,
        weight,
        bias,
        mean_logits,
        var_logits,
        stored,
        across,
        widths,
        mean,
        var,
        std,
        hard,
        eps,
        replicas,
    ) -> Any:
        dtype = mean_NC.dtype
        if dtype not in (torch.float32, torch.float64) or not mean_NC.numel():
            return NotImplemented
        parameters = _dense((mean_NC, var_NC, weight, bias, mean_logits, var_logits, stored), dtype)
        rows, C = mean_NC.shape
        description, size = _describe(
            *(replicas, rows, C, *_counts(C, weight, bias, mean_logits, var_logits), std, hard, stored is not None),
            *(torch.get_num_threads(), tuple(across), tuple(widths), tuple(mean), tuple(var)),
        )
        results = [*(mean_NC.new_empty(rows, C) for _ in range(4)), mean_NC.new_empty(size)]
        _call(self._functions["mix"], _TYPES[dtype], description, eps, *parameters, *results)
        return tuple(results)

    def mix_backward(
        self,
        dscale,
        dshift,
        mean_NC,
        var_NC,
        scale,
        mu,
        rstd,
        statistics,
        weight,
        bias,
        mean_logits,
        var_logits,
        stored,
        across,
        widths,
        mean,
        var,
        std,
        hard,
        eps,
        replicas,
    ) -> Any:
        dtype = mean_NC.dtype
        if dtype not in (torch.float32, torch.float64) or not mean_NC.numel():
            return NotImplemented
        given = _dense(
            (dscale, dshift, mean_NC, var_NC, scale, mu, rstd, statistics, weight, mean_logits, var_logits), dtype
        )
        rows, C = mean_NC.shape
        description, _ = _describe(
            *(replicas, rows, C, *_counts(C, weight, bias, mean_logits, var_logits), std, hard, stored),
            *(torch.get_num_threads(), tuple(across), tuple(widths), tuple(mean), tuple(var)),
        )
        gradients = [mean_NC.new_empty(rows, C), mean_NC.new_empty(rows, C)]
        gradients += [mean_NC.new_empty(0 if t is None else t.shape) for t in (weight, bias, mean_logits, var_logits)]
        _call(self._functions["mix_backward"], _TYPES[dtype], description, eps, *given, *gradients)
        return tuple(gradients)

    def forward(
        self, x, mean_NC, var_NC, weight, bias, mean_logits, var_logits, stored, algebra: Algebra, replicas: int
    ) -> Any:
        """moments (where mean_NC is None), mix and affine: y, then mean_NC, var_NC, statistics.

        No moments of maps of a single position, which are the map itself, and zeros: they would be as large as x.
        """
        last = _channels_last(x)
        if last is None:
            return NotImplemented
        wide, shape = _wide(x), x.shape[:2]
        measure = mean_NC is None
        if measure:
            mean_NC, var_NC = torch.empty(shape, dtype=wide), torch.empty(shape, dtype=wide)
        else:
            mean_NC, var_NC = _dense((mean_NC, var_NC), wide)
        parameters = _dense((weight, bias, mean_logits, var_logits, stored), wide)
        description, size = _describe(
            *(replicas, *shape, *_counts(shape[1], *parameters[:4]), algebra.std, algebra.hard),
            *(stored is not None, torch.get_num_threads()),
            *(algebra.across, algebra.widths, algebra.mean, algebra.var),
        )
        y = torch.empty_like(x)
        results = (mean_NC, var_NC, torch.empty(size, dtype=wide))
        numbers = (_TYPES[x.dtype], description, algebra.eps, x.numel() // mean_NC.numel(), last, measure)
        _call(self._functions["forward"], *numbers, x, *parameters, y, *results)
        return (y, None, None, results[-1]) if measure and mean_NC.numel() == x.numel() else (y, *results)

    def backward(
        self,
        dy,
        x,
        mean_NC,
        var_NC,
        weight,
        bias,
        mean_logits,
        var_logits,
        stored,
        algebra: Algebra,
        replicas: int,
        needs_dx: bool,
    ) -> Any:
        """sums, mix_backward and input_gradient: dx (None: not needed), then the gradients of the parameters.

        The moments are those that `forward` gave.
        """
        last, wide, shape = _channels_last(x), _wide(x), x.shape[:2]
        if mean_NC is None:
            mean_NC, var_NC = self.moments(x)
        parameters = (weight, bias, mean_logits, var_logits)
        description, _ = _describe(
            *(replicas, *shape, *_counts(shape[1], *parameters), algebra.std, algebra.hard),
            *(stored is not None, torch.get_num_threads()),
            *(algebra.across, algebra.widths, algebra.mean, algebra.var),
        )
        dx = torch.empty_like(x) if needs_dx else None
        gradients = [None if t is None else torch.empty(t.shape, dtype=wide) for t in parameters]
        given = _dense((weight, mean_logits, var_logits, stored), wide)
        numbers = (_TYPES[x.dtype], description, algebra.eps, x.numel() // mean_NC.numel(), last)
        _call(self._functions["backward"], *numbers, _like(dy, x), x, mean_NC, var_NC, *given, dx, *gradients)
        return dx, *gradients

    def advance(self, running_W: Tensor, measured_RW: Tensor, weight: float | Tensor, factor: float) -> Any:
        dtype = running_W.dtype
        if dtype not in (torch.float32, torch.float64) or measured_RW.dtype != dtype:
            return NotImplemented
        if not (running_W.is_contiguous() and measured_RW.is_contiguous()):
            return NotImplemented
        numbers = (_TYPES[dtype], *measured_RW.shape, float(weight), factor)
        _call(self._functions["advance"], *numbers, measured_RW, running_W)
        return running_W


def _counts(C: int, weight, bias, mean_logits, var_logits) -> tuple[int, int, int, int]:
    """Groups of channels with ratios of their own, for mean and variance, and rows of weight and bias; 0: none."""
    mean_groups, var_groups = (0 if t is None else t.numel() // t.shape[-1] for t in (mean_logits, var_logits))
    weight_rows, bias_rows = (0 if t is None else t.numel() // C for t in (weight, bias))
    return mean_groups, var_groups, weight_rows, bias_rows


@cache
def _describe(
    replicas,
    rows,
    C,
    mean_groups,
    var_groups,
    weight_rows,
    bias_rows,
    std,
    hard,
    stored,
    threads,
    across,
    widths,
    mean,
    var,
):
    """The algebra in integers, as native.cpp reads them, and the size of the flat statistics."""
    numbers = (
        *(replicas, rows, C, mean_groups, var_groups, weight_rows, bias_rows, std, hard, stored, threads),
        *(
            len(across),
            len(mean),
            len(var),
            *itertools.chain.from_iterable(zip(across, widths, strict=True)),
            *mean,
            *var,
        ),
    )
    algebra = Algebra(across, widths, mean, var, std, hard, 0.0)
    size = max(var.stop for _, var, _ in algebra.layout(replicas, rows, C))
    return (c_int64 * len(numbers))(*numbers), size
