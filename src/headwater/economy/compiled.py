"""How the simulator's kernels are compiled: one decorator, cached, without the interpreter's lock.

`error_model="numpy"` drops the check for division by zero; every kernel divides by something its caller
has checked. No `fastmath`: a kernel must give the same bits for every number of threads.

The compiled code is cached beside the source and is rebuilt when *that* file changes; after editing a
kernel that kernels of other files call, remove `__pycache__`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

Kernel = TypeVar("Kernel", bound=Callable[..., Any])

Whole = Any
"""An integer that is `int` outside kernels and `np.int64` inside; a type checker cannot follow the change."""

Int64s = NDArray[np.int64]
Int32s = NDArray[np.int32]
Int16s = NDArray[np.int16]
UInt32s = NDArray[np.uint32]
UInt8s = NDArray[np.uint8]
Float64s = NDArray[np.float64]
Float32s = NDArray[np.float32]


def compiled(function: Kernel) -> Kernel:
    """`function` as machine code, kept on disk, callable from several threads at once."""
    return cast(Kernel, numba.njit(cache=True, nogil=True, error_model="numpy")(function))


def vectorised(function: Kernel) -> Kernel:
    """`compiled`, with sums of floats in whatever order the machine's vectors allow: the last bits may differ."""
    return cast(Kernel, numba.njit(cache=True, nogil=True, error_model="numpy", fastmath={"reassoc", "nsz"})(function))


def inlined(function: Kernel) -> Kernel:
    """`function` as part of each kernel that calls it: passing many arrays costs more than small loops over them."""
    return cast(Kernel, numba.njit(cache=True, nogil=True, error_model="numpy", inline="always")(function))
