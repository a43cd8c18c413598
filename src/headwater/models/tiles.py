"""The two inner loops of the scorer, written for the compiler: register tiles of matrix products.

Each function multiplies a few rows by a few 16-lane vectors and keeps every sum in a register. Along
the inner dimension the order is fixed and each row is summed on its own, so a result depends on its
row and column alone: not on how many rows are computed together, and not on the vector instructions
the machine has (the integer sums are exact, the float steps are single fused operations). Knows
nothing of layers, tokens or memory layout beyond strides. numba's compile cache looks at the calling modules
only: after a change here, clear their `__pycache__`.

`float_tile`: C (+)= A B in float32.
`code_tile`: C = X W with X in 16-bit or 8-bit integers with one scale per 32-block, and W in small integer
codes with one scale and one minimum per 32-block: ``w = code * scale + minimum``. Products of a block are
summed exactly in 32-bit integers, two or four per instruction lane (a group), then scaled in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import binding, ir
from numba import config, types
from numba.core import cgutils
from numba.extending import intrinsic as typed_intrinsic

intrinsic: Any = typed_intrinsic  # called with one argument less than it is declared with

LANES = 16
BLOCK = 32

_F32, _I32, _I16, _I8, _I64 = ir.FloatType(), ir.IntType(32), ir.IntType(16), ir.IntType(8), ir.IntType(64)
_VF, _VI, _VH = ir.VectorType(_F32, LANES), ir.VectorType(_I32, LANES), ir.VectorType(_I16, 2 * LANES)
_VB = ir.VectorType(_I8, 4 * LANES)


def _splat(builder: Any, value: Any, vector: Any) -> Any:
    single = builder.insert_element(ir.Constant(vector, ir.Undefined), value, _I32(0))
    return builder.shuffle_vector(single, ir.Constant(vector, ir.Undefined), ir.Constant(_VI, [0] * LANES))


def _fma(builder: Any, left: Any, right: Any, total: Any) -> Any:
    insert: Any = cgutils.get_or_insert_function
    function = insert(builder.module, ir.FunctionType(_VF, [_VF, _VF, _VF]), "llvm.fma.v16f32")
    return builder.call(function, [left, right, total])


def _pair_sum(builder: Any, total: Any, left: Any, right: Any) -> Any:
    """``total + left.even * right.even + left.odd * right.odd`` in each lane; factors are lanes of two int16.

    Written out in plain vector operations; the compiler finds the pair instruction of the machine
    (vpdpwssd, vpmaddwd, smlal) by itself, and without one the integers are the same.
    """
    wide = ir.VectorType(_I32, 2 * LANES)
    product = builder.mul(*(builder.sext(builder.bitcast(side, _VH), wide) for side in (left, right)))
    nothing = ir.Constant(wide, ir.Undefined)
    even, odd = (
        builder.shuffle_vector(product, nothing, ir.Constant(_VI, list(range(first, 2 * LANES, 2)))) for first in (0, 1)
    )
    return builder.add(total, builder.add(even, odd))


def _quad_sum(builder: Any, total: Any, left: Any, right: Any) -> Any:
    """``total`` and four products in each lane; `left` holds four int8, `right` four uint8.

    With AVX-512 VNNI it is one instruction, which the compiler does not find by itself; elsewhere plain
    vector operations give the same integers.
    """
    if _has_quad_instruction():
        insert: Any = cgutils.get_or_insert_function
        function = insert(builder.module, ir.FunctionType(_VI, [_VI, _VB, _VB]), "llvm.x86.avx512.vpdpbusd.512")
        return builder.call(function, [total, builder.bitcast(right, _VB), builder.bitcast(left, _VB)])
    wide = ir.VectorType(_I32, 4 * LANES)
    product = builder.mul(
        builder.sext(builder.bitcast(left, _VB), wide), builder.zext(builder.bitcast(right, _VB), wide)
    )
    nothing = ir.Constant(wide, ir.Undefined)
    for first in range(4):
        places = ir.Constant(_VI, list(range(first, 4 * LANES, 4)))
        total = builder.add(total, builder.shuffle_vector(product, nothing, places))
    return total


def _has_quad_instruction() -> bool:
    """Whether what is compiled for has AVX-512 VNNI; numba may be told to compile for another processor."""
    told: Any = config
    if told.CPU_NAME is None and told.CPU_FEATURES is None:
        return bool(binding.get_host_cpu_features().get("avx512vnni", False))
    return "+avx512vnni" in (told.CPU_FEATURES or "").split(",")


def _at(builder: Any, pointer: Any, index: Any, element: Any) -> Any:
    """Pointer to element `index` of an array of `element`, whatever the pointer was declared as."""
    return builder.gep(builder.bitcast(pointer, ir.PointerType(element)), [index])


def _load(builder: Any, pointer: Any, index: Any, element: Any, vector: Any) -> Any:
    place = builder.bitcast(_at(builder, pointer, index, element), ir.PointerType(vector))
    value = builder.load(place)
    value.align = 4
    return value


def _store(builder: Any, value: Any, pointer: Any, index: Any) -> None:
    place = builder.bitcast(_at(builder, pointer, index, _F32), ir.PointerType(_VF))
    builder.store(value, place).align = 4


def _scalar(builder: Any, pointer: Any, index: Any, element: Any) -> Any:
    return builder.load(_at(builder, pointer, index, element))


class _Loop:
    """A counted loop that carries SSA values, so that sums stay in registers."""

    def __init__(
        self, builder: Any, count: Any, carried: list[Any], body: Callable[[Any, list[Any]], list[Any]]
    ) -> None:
        before = builder.block
        head, inside, after = (builder.append_basic_block(name) for name in ("loop.head", "loop.body", "loop.after"))
        builder.branch(head)
        builder.position_at_end(head)
        index = builder.phi(_I64)
        phis = [builder.phi(value.type) for value in carried]
        index.add_incoming(_I64(0), before)
        for phi, value in zip(phis, carried, strict=True):
            phi.add_incoming(value, before)
        builder.cbranch(builder.icmp_signed("<", index, count), inside, after)
        builder.position_at_end(inside)
        results = body(index, list(phis))
        index.add_incoming(builder.add(index, _I64(1)), builder.block)
        for phi, value in zip(phis, results, strict=True):
            phi.add_incoming(value, builder.block)
        builder.branch(head)
        builder.position_at_end(after)
        self.results = phis


def float_tile(rows: int, vectors: int) -> Any:
    """Tile function ``f(a, a_row, a_inner, b, b_inner, inner, c, c_row, add)``: addresses, strides in elements, 0 or 1.

    C[r, 0:16*vectors] = (C if add) + sum over i of A[r * a_row + i * a_inner] * B[i * b_inner + lanes].
    """

    def code(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        a, a_row, a_inner, b, b_inner, inner, c, c_row, add = args
        a, b, c = (builder.inttoptr(pointer, ir.PointerType(_F32)) for pointer in (a, b, c))
        lane_start = [_I64(LANES * v) for v in range(vectors)]
        row_start = [builder.mul(a_row, _I64(r)) for r in range(rows)]
        keep = builder.icmp_signed("!=", add, _I64(0))
        zero = ir.Constant(_VF, [0.0] * LANES)
        start = []
        with builder.if_else(keep) as (then, otherwise):
            with then:
                loaded = [
                    _load(builder, c, builder.add(builder.mul(c_row, _I64(r)), lane_start[v]), _F32, _VF)
                    for r in range(rows)
                    for v in range(vectors)
                ]
                then_block = builder.block
            with otherwise:
                else_block = builder.block
        for value in loaded:
            phi = builder.phi(_VF)
            phi.add_incoming(value, then_block)
            phi.add_incoming(zero, else_block)
            start.append(phi)

        def body(index: Any, sums: list[Any]) -> list[Any]:
            b_start, a_start = builder.mul(index, b_inner), builder.mul(index, a_inner)
            columns = [_load(builder, b, builder.add(b_start, lane), _F32, _VF) for lane in lane_start]
            results = []
            for r in range(rows):
                value = _splat(builder, _scalar(builder, a, builder.add(a_start, row_start[r]), _F32), _VF)
                results += [_fma(builder, value, columns[v], sums[r * vectors + v]) for v in range(vectors)]
            return results

        sums = _Loop(builder, inner, start, body).results
        for r in range(rows):
            for v in range(vectors):
                _store(builder, sums[r * vectors + v], c, builder.add(builder.mul(c_row, _I64(r)), lane_start[v]))
        return _context.get_dummy_value()

    def typing(
        _context: Any, a: Any, a_row: Any, a_inner: Any, b: Any, b_inner: Any, inner: Any, c: Any, c_row: Any, add: Any
    ) -> Any:
        arguments = (a, a_row, a_inner, b, b_inner, inner, c, c_row, add)
        return types.void(*(types.int64 for _ in arguments)), code

    return intrinsic(typing)


def code_tile(rows: int, vectors: int, group: int) -> Any:
    """Tile function ``f(x, x_row, xs, xm, s_row, w, scale, minimum, blocks, c, c_row)``.

    Addresses and strides in elements: `x` groups of integers as int32 (stride `x_row`), `xs` and `xm` float32
    per block (stride `s_row`): the block's scale, and its scale times the sum of its integers. `w` groups
    packed (blocks * 32 / group, vectors * 16), `scale` and `minimum` (blocks, vectors * 16). A group is two
    int16 on both sides, or four int8 against four uint8.
    """
    steps = BLOCK // group
    dot = _pair_sum if group == 2 else _quad_sum

    def code(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        x, x_row, xs, xm, s_row, w, scale, minimum, blocks, c, c_row = args
        x, w = (builder.inttoptr(pointer, ir.PointerType(_I32)) for pointer in (x, w))
        xs, xm, scale, minimum, c = (
            builder.inttoptr(pointer, ir.PointerType(_F32)) for pointer in (xs, xm, scale, minimum, c)
        )
        width = LANES * vectors
        nothing = ir.Constant(_VI, [0] * LANES)

        def body(block: Any, totals: list[Any]) -> list[Any]:
            sums = [nothing] * (rows * vectors)
            w_start, x_start = builder.mul(block, _I64(steps * width)), builder.mul(block, _I64(steps))
            x_starts = [builder.add(x_start, builder.mul(x_row, _I64(r))) for r in range(rows)]
            for step in range(steps):
                columns = [
                    _load(builder, w, builder.add(w_start, _I64(step * width + v * LANES)), _I32, _VI)
                    for v in range(vectors)
                ]
                for r in range(rows):
                    value = _splat(builder, _scalar(builder, x, builder.add(x_starts[r], _I64(step)), _I32), _VI)
                    for v in range(vectors):
                        sums[r * vectors + v] = dot(builder, sums[r * vectors + v], value, columns[v])
            s_start = builder.mul(block, _I64(width))
            scales, minima = (
                [_load(builder, source, builder.add(s_start, _I64(v * LANES)), _F32, _VF) for v in range(vectors)]
                for source in (scale, minimum)
            )
            results = []
            for r in range(rows):
                at = builder.add(block, builder.mul(s_row, _I64(r)))
                row_scale, row_sum = (_splat(builder, _scalar(builder, source, at, _F32), _VF) for source in (xs, xm))
                for v in range(vectors):
                    product = builder.fmul(builder.sitofp(sums[r * vectors + v], _VF), scales[v])
                    total = _fma(builder, product, row_scale, totals[r * vectors + v])
                    results.append(_fma(builder, minima[v], row_sum, total))
            return results

        totals = _Loop(builder, blocks, [ir.Constant(_VF, [0.0] * LANES)] * (rows * vectors), body).results
        for r in range(rows):
            for v in range(vectors):
                _store(builder, totals[r * vectors + v], c, builder.add(builder.mul(c_row, _I64(r)), _I64(v * LANES)))
        return _context.get_dummy_value()

    def typing(
        _context: Any,
        x: Any,
        x_row: Any,
        xs: Any,
        xm: Any,
        s_row: Any,
        w: Any,
        scale: Any,
        minimum: Any,
        blocks: Any,
        c: Any,
        c_row: Any,
    ) -> Any:
        arguments = (x, x_row, xs, xm, s_row, w, scale, minimum, blocks, c, c_row)
        return types.void(*(types.int64 for _ in arguments)), code

    return intrinsic(typing)


def _float_from_bits(_context: Any, bits: Any) -> Any:  # noqa: ARG001
    """The float32 whose bit pattern is an int32."""

    def code(_context: Any, builder: Any, _signature: Any, args: Any) -> Any:
        return builder.bitcast(args[0], _F32)

    return types.float32(types.int32), code


float_from_bits = intrinsic(_float_from_bits)
