"""Compiled code's view of memory: prefetch hints, and arrays at addresses held by a snapshot.

A snapshot hands kernels one row of addresses per segment instead of dozens of arrays, because
passing an array from Python costs more than searching it. Whoever passes an address keeps the
memory alive and vouches for its length. Knows nothing of what the memory holds.
"""

# mypy: allow-untyped-defs, allow-untyped-calls, allow-untyped-decorators, disable-error-code="misc,no-any-return"

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

compiled: Any = njit(cache=True, nogil=True)
"""Compile on first use, keep the machine code beside the source, and let other threads run meanwhile."""


@intrinsic
def _prefetch(_context, array, index):  # noqa: ARG001 - numba reads the parameters' names
    """Ask for the cache line of `array[index]`, which must lie inside the array; returns nothing."""
    if not isinstance(array, types.Array):  # pragma: no cover - a mistake of ours, refused by the compiler
        return None

    def codegen(context, builder, signature, arguments):
        kind = signature.args[0]
        value = context.make_array(kind)(context, builder, arguments[0])
        item = cgutils.get_item_pointer(context, builder, kind, value, [arguments[1]], wraparound=False)
        byte_pointer = builder.bitcast(item, ir.IntType(8).as_pointer())
        int32 = ir.IntType(32)
        function_type = ir.FunctionType(ir.VoidType(), [byte_pointer.type, int32, int32, int32])
        function = cgutils.get_or_insert_function(builder.module, function_type, "llvm.prefetch.p0")
        builder.call(function, [byte_pointer, int32(0), int32(3), int32(1)])
        return context.get_dummy_value()

    return types.void(array, types.intp), codegen


prefetch: Any = _prefetch


@intrinsic
def _zeros_below(_context, word):  # noqa: ARG001 - numba reads the parameter's name
    """How many zero bits lie below the lowest one of a uint64, which must not be 0."""

    def codegen(_context, builder, _signature, arguments):
        return builder.cttz(arguments[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.uint64), codegen


zeros_below: Any = _zeros_below


def _pointer_to(kind: Any) -> Any:
    @intrinsic
    def pointer(_context, address):  # noqa: ARG001 - numba reads the parameter's name
        signature = types.CPointer(kind)(types.int64)

        def codegen(context, builder, signature, arguments):
            return builder.inttoptr(arguments[0], context.get_value_type(signature.return_type))

        return signature, codegen

    return pointer


u8_at = _pointer_to(types.uint8)
u16_at = _pointer_to(types.uint16)
u32_at = _pointer_to(types.uint32)
i32_at = _pointer_to(types.int32)
u64_at = _pointer_to(types.uint64)
i64_at = _pointer_to(types.int64)
