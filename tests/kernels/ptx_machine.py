"""Executes compiled kernels on the CPU: PTX, one instruction after another, all threads of a program at once.

What Triton makes of a kernel for a GPU is checked so without one: layouts, operands of tensor cores, masks. Registers
are NumPy arrays with one element per thread, and threads never part (a branch must be taken by all), so that a race
between threads is not seen. Sums of tensor cores are rounded once, which no GPU promises. See the PTX ISA manual.
"""

import re
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

LANES = 32
# Where global memory starts, far from every number that a kernel computes with.
BASE = 1 << 40
SIZES = {"r": np.uint32, "rd": np.uint64, "rs": np.uint16, "p": np.bool_, "f": np.uint32, "fd": np.uint64}
TYPES = {
    "b8": np.uint8, "u8": np.uint8, "s8": np.int8, "b16": np.uint16, "u16": np.uint16, "s16": np.int16,
    "b32": np.uint32, "u32": np.uint32, "s32": np.int32, "b64": np.uint64, "u64": np.uint64, "s64": np.int64,
    "f16": np.float16, "f32": np.float32, "f64": np.float64, "pred": np.bool_,
}  # fmt: skip
COMPARE = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
}  # fmt: skip
PLAIN = {
    "add": np.add, "sub": np.subtract, "mul": np.multiply, "and": np.bitwise_and, "or": np.bitwise_or,
    "xor": np.bitwise_xor, "shl": np.left_shift, "shr": np.right_shift, "max": np.fmax, "min": np.fmin,
    "div": np.divide,
}  # fmt: skip
ONE = {
    "neg": np.negative, "abs": np.abs, "not": np.invert, "mov": lambda x: x, "sqrt": np.sqrt, "ex2": np.exp2,
    "rcp": np.reciprocal, "lg2": np.log2,
}  # fmt: skip
# Without an effect where threads never part and copies are made at once.
IGNORED = ("bar", "griddepcontrol", "cp.async.commit_group", "cp.async.wait_group", "barrier", "fence")

Array = NDArray[Any]


class Memory:
    """Global memory: copies of the storages of tensors, each in a room of its own that is NaN (or -1) all around."""

    def __init__(self, tensors: list[Tensor], margin: int = 4096) -> None:
        self.places: dict[int, tuple[int, Tensor]] = {}
        parts, size = [], 0
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage.data_ptr() in self.places:
                continue
            whole = torch.tensor([], dtype=torch.uint8).set_(storage)
            self.places[storage.data_ptr()] = size + margin, whole
            parts += [np.full(margin, 255, np.uint8), whole.numpy().copy(), np.full(-len(whole) % 256, 255, np.uint8)]
            size += sum(map(len, parts[-3:]))
        self.bytes = np.concatenate([*parts, np.full(margin, 255, np.uint8)])

    def address(self, tensor: Tensor) -> int:
        """Of its first element."""
        start = self.places[tensor.untyped_storage().data_ptr()][0]
        return BASE + start + tensor.storage_offset() * tensor.element_size()

    def write_back(self) -> None:
        """Give the tensors what is here now."""
        for start, whole in self.places.values():
            whole.copy_(torch.from_numpy(self.bytes[start : start + len(whole)]))


class Kernel:
    """A compiled kernel. `run` executes one program after another."""

    def __init__(self, ptx: str, num_warps: int, shared: int) -> None:
        self.threads, self.shared_size = LANES * num_warps, shared
        self.params = re.findall(r"\.param [^,)\n]*?(\w+_param_\d+)", ptx)
        body = ptx[ptx.index("\n{\n") + 3 : ptx.index("\n}\n")]
        self.code: list[tuple[str, bool, str, list[str]]] = []
        self.labels: dict[str, int] = {}
        lines = (re.sub(r"//.*", "", line).strip() for line in body.splitlines())
        kept = (line for line in lines if line and not line.startswith("."))
        for statement in re.split(r"[;\n]\s*(?![^{]*\})", "\n".join(kept)):
            statement = " ".join(statement.split())
            while label := re.match(r"(\$\w+):\s*", statement):
                self.labels[label[1]] = len(self.code)
                statement = statement[label.end() :]
            if not statement:
                continue
            found = re.match(r"(?:@(!?)(%p\d+)\s+)?(\S+)\s*(.*)", statement)
            assert found, statement
            operands = re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+", found[4])
            self.code.append((found[2] or "", bool(found[1]), found[3], operands))

    def run(self, grid: tuple[int, ...], memory: Memory, arguments: list[int | float]) -> None:
        grid = (*grid, 1, 1)[:3]
        with np.errstate(all="ignore"):
            for place in np.ndindex(grid):
                _Program(self, memory, arguments, grid, place).run()


class _Program:
    def __init__(
        self,
        kernel: Kernel,
        memory: Memory,
        arguments: list[int | float],
        grid: tuple[int, ...],
        place: tuple[int, ...],
    ) -> None:
        self.kernel, self.memory = kernel, memory
        self.arguments = dict(zip(kernel.params, [*arguments, 0, 0, 0, 0]))
        self.thread = np.arange(kernel.threads)
        self.special: dict[str, Any] = {"%tid.x": self.thread}
        for axis, number, count in zip("xyz", place, grid):
            self.special |= {f"%ctaid.{axis}": number, f"%nctaid.{axis}": count}
        self.shared = np.full(kernel.shared_size, 255, np.uint8)
        self.registers: dict[str, Array] = {}

    def run(self) -> None:
        at, code = 0, self.kernel.code
        while at < len(code):
            predicate, negated, name, operands = code[at]
            at += 1
            active = np.ones(len(self.thread), bool)
            if predicate:
                active = self.registers[predicate] ^ negated
            if name.startswith("bra"):
                assert active.all() or not active.any(), "threads part"
                at = self.kernel.labels[operands[0]] if active.all() else at
            elif name == "ret":
                assert active.all() or not active.any(), "threads part"
                if active.all():
                    return
            elif not name.startswith(IGNORED):
                self._execute(name, operands, active)

    def _get(self, operand: str, dtype: Any) -> Array:
        """A register, special register or constant as `dtype`: [threads]."""
        if operand in self.special:
            return np.broadcast_to(np.asarray(self.special[operand], dtype), self.thread.shape)
        if operand.startswith("%"):
            value = self.registers[operand]
            if value.dtype.itemsize == np.dtype(dtype).itemsize:
                return value.view(dtype)
            return value.astype(f"u{np.dtype(dtype).itemsize}").view(dtype)
        if operand == "global_smem":
            value = np.zeros(1, dtype)
        elif re.match(r"0[fF]", operand):
            value = np.array([int(operand[2:], 16)], np.uint32)
        elif re.match(r"0[xX][0-9A-Fa-f]{4}$", operand) and np.dtype(dtype).kind == "f":
            value = np.array([int(operand, 16)], np.uint16)
        elif np.dtype(dtype).kind == "b":
            value = np.array([int(operand) != 0])
        else:
            value = np.array([int(operand.rstrip("U"), 0) & (1 << 8 * np.dtype(dtype).itemsize) - 1]).astype(
                f"u{np.dtype(dtype).itemsize}"
            )
        return np.broadcast_to(value.view(dtype), self.thread.shape)

    def _set(self, register: str, value: Array, active: Array) -> None:
        dtype = np.dtype(SIZES[re.match(r"%([a-z]+)", register)[1]])  # pyright: ignore[reportOptionalSubscript]
        value = np.ascontiguousarray(value)
        if dtype != np.bool_ and value.dtype.itemsize == dtype.itemsize:
            value = value.view(dtype)
        elif dtype != np.bool_:
            value = value.astype(np.int64 if value.dtype.kind == "i" else np.uint64).astype(dtype)
        if not active.all():
            value = np.where(active, value, self.registers.get(register, np.zeros(len(active), dtype)))
        self.registers[register] = value

    def _address(self, operand: str) -> Array:
        base, _, offset = operand.strip("[] ").partition("+")
        address = self._get(base.strip(), np.uint64).astype(np.int64) + int(offset.strip() or "0", 0)
        return address & 0xFFFFFFFF if re.match(r"%r\d", base) else address

    def _space(self, name: str) -> tuple[Array, int]:
        return (self.memory.bytes, BASE) if ".global" in name else (self.shared, 0)

    def _execute(self, name: str, operands: list[str], active: Array) -> None:
        parts = name.split(".")
        op, kind = parts[0], parts[-1]
        if op == "ld" and "param" in parts:
            value = self.arguments[operands[1].strip("[]")]
            value = np.array([value], np.float32) if isinstance(value, float) else np.array([value], TYPES[kind])
            self._set(operands[0], np.broadcast_to(value, active.shape), active)
        elif op in ("ld", "st"):
            self._move(name, operands, active)
        elif name.startswith("cp.async"):
            self._copy(operands, active)
        elif op in ("mma", "ldmatrix", "stmatrix", "shfl"):
            getattr(self, f"_{op}")(name, operands, active)
        elif op == "mov" and "{" in "".join(operands):
            self._pack(operands, active)
        elif op == "cvt":
            self._convert(parts, operands, active)
        elif op == "setp":
            left, right = (self._get(operand, TYPES[kind]) for operand in operands[1:])
            self._set(operands[0], _compare(parts[1], left, right), active)
        elif op == "selp":
            yes, no = (self._get(operand, TYPES[kind]) for operand in operands[1:3])
            self._set(operands[0], np.where(self.registers[operands[3]], yes, no), active)
        elif kind in ("f16x2", "bf16x2", "s16x2", "u16x2", "bf16"):
            self._narrow(op, kind, operands, active)
        else:
            self._set(operands[0], self._compute(op, parts, [*operands[1:]]), active)

    def _compute(self, op: str, parts: list[str], operands: list[str]) -> Array:
        dtype = np.dtype(TYPES[parts[-1]])
        if op in ("mad", "fma") or (op == "mul" and dtype.kind != "f"):
            return self._multiply(op, parts, dtype, operands)
        if op == "prmt":
            return self._permute(operands)
        if op == "redux":
            assert (self._get(operands[1], np.uint32) == 0xFFFFFFFF).all(), "some lanes of a warp alone"
            values = self._get(operands[0], dtype).reshape(-1, LANES)
            return np.repeat({"min": np.min, "max": np.max, "add": np.sum}[parts[2]](values, axis=1), LANES).astype(
                dtype
            )
        if op == "bfe":
            x, start, length = (self._get(operand, np.int64) for operand in operands)
            x = self._get(operands[0], dtype).astype(np.int64) >> start & (1 << length) - 1
            return np.where(x >> (length - 1) & (dtype.kind == "i"), x - (1 << length), x).astype(np.int64)
        if op in ONE:
            return ONE[op](self._get(operands[0], dtype))
        if op in ("shl", "shr"):
            by = self._get(operands[1], np.uint32).astype(np.uint64)
            x = self._get(operands[0], np.dtype(dtype.str.replace("u", "i")) if dtype.kind == "i" else dtype)
            return PLAIN[op](x, np.minimum(by, 8 * dtype.itemsize - 1).astype(dtype))
        x, y = (self._get(operand, dtype) for operand in operands)
        if op in ("div", "rem") and dtype.kind != "f":
            # Towards zero, as in C.
            quotient = np.where(
                y == 0, 0, (np.abs(x) // np.maximum(np.abs(y), 1)).astype(dtype) * np.sign(x) * np.sign(y)
            )
            return (quotient if op == "div" else x - quotient * y).astype(dtype)
        return PLAIN[op](x, y).astype(dtype)

    def _multiply(self, op: str, parts: list[str], dtype: Any, operands: list[str]) -> Array:
        if dtype.kind == "f":
            # The product of two FP32 numbers is exact in FP64.
            x, y, z = (self._get(operand, dtype).astype(np.float64) for operand in operands)
            return (x * y + z).astype(dtype)
        wide = np.int64 if dtype.kind == "i" else np.uint64
        x, y = (self._get(operand, dtype).astype(wide) for operand in operands[:2])
        if "hi" in parts:
            # 128 bits are too many for NumPy.
            return np.array([int(a) * int(b) >> 8 * dtype.itemsize for a, b in zip(x, y)]).astype(dtype)
        out = {2: np.uint32, 4: np.uint64}[dtype.itemsize] if "wide" in parts else dtype
        value = (x * y).astype(out)
        return value + self._get(operands[2], out) if op == "mad" else value

    def _permute(self, operands: list[str]) -> Array:
        low, high, how = (np.ascontiguousarray(self._get(operand, np.uint32)) for operand in operands)
        source = np.stack([low, high], 1).view(np.uint8)
        out = np.zeros((len(low), 4), np.uint8)
        for byte in range(4):
            pick = how >> 4 * byte & 15
            value = source[self.thread, pick & 7]
            out[:, byte] = np.where(pick & 8, (value.view(np.int8) >> 7).view(np.uint8), value)
        return out.view(np.uint32)[:, 0]

    def _narrow(self, op: str, kind: str, operands: list[str], active: Array) -> None:
        """Arithmetic on pairs of 16 bits, and on BF16."""
        element, lanes = kind.removesuffix("x2"), 2 if kind.endswith("x2") else 1
        stored = [np.ascontiguousarray(self._get(o, (np.uint16, np.uint32)[lanes - 1])) for o in operands[1:]]
        values = [x.view(np.uint16).reshape(-1, lanes) for x in stored]
        if element == "bf16":
            values = [_from_bf16(x).astype(np.float64) for x in values]
        else:
            values = [x.view(TYPES[element]) for x in values]
        out = values[0] * values[1] + values[2] if op == "fma" else PLAIN[op](*values)
        out = _to_bf16(out) if element == "bf16" else out.astype(TYPES[element]).view(np.uint16)
        self._set(operands[0], np.ascontiguousarray(out).view((np.uint16, np.uint32)[lanes - 1])[:, 0], active)

    def _convert(self, parts: list[str], operands: list[str], active: Array) -> None:
        to, source = parts[-2:]
        if to.endswith("x2"):
            pair = [self._get(operand, np.float32) for operand in operands[:0:-1]]
            halves = [_to_bf16(x) if to == "bf16x2" else x.astype(np.float16).view(np.uint16) for x in pair]
            self._set(operands[0], np.stack(halves, 1).view(np.uint32)[:, 0], active)
            return
        if source == "bf16":
            value = _from_bf16(self._get(operands[1], np.uint16))
        else:
            value = self._get(operands[1], TYPES[source])
        value = _to_bf16(value) if to == "bf16" else value.astype(TYPES[to])
        self._set(operands[0], value, active)

    def _pack(self, operands: list[str], active: Array) -> None:
        to, source = (re.findall(r"[^{},\s]+", operand) for operand in operands)
        wide, narrow = (to[0], source) if len(source) > 1 else (source[0], to)
        size = SIZES[re.match(r"%([a-z]+)", wide)[1]]  # pyright: ignore[reportOptionalSubscript]
        part = {4: np.uint16, 8: np.uint32}[np.dtype(size).itemsize]
        if len(source) > 1:
            self._set(wide, np.stack([self._get(one, part) for one in narrow], 1).view(size)[:, 0], active)
            return
        halves = np.ascontiguousarray(self._get(wide, size)).view(part).reshape(-1, 2)
        for index, one in enumerate(narrow):
            if one != "_":
                self._set(one, halves[:, index], active)

    def _move(self, name: str, operands: list[str], active: Array) -> None:
        load = name.startswith("ld")
        registers = re.findall(r"[^{},\s]+", operands[0 if load else 1])
        dtype = np.dtype(TYPES[name.rsplit(".", 1)[1]])
        space, base = self._space(name)
        where = (self._address(operands[1 if load else 0]) - base)[:, None] + np.arange(len(registers) * dtype.itemsize)
        assert not (where[active] < 0).any() and not (where[active] >= len(space)).any(), f"{name} out of memory"
        assert not (where[active, 0] % where.shape[1]).any(), f"{name} is not aligned"
        if load:
            found = np.ascontiguousarray(space[np.where(active[:, None], where, 0)]).view(dtype)
            for index, register in enumerate(registers):
                self._set(register, found[:, index], active)
        else:
            values = np.stack([self._get(register, dtype) for register in registers], 1)
            space[where[active]] = np.ascontiguousarray(values[active]).view(np.uint8)

    def _copy(self, operands: list[str], active: Array) -> None:
        size = int(operands[2], 0)
        given = self._get(operands[3], np.uint32) if len(operands) > 3 else np.full(len(active), size)
        to, source = self._address(operands[0])[:, None], self._address(operands[1])[:, None] - BASE
        there = active[:, None] & (np.arange(size) < given[:, None])
        values = np.where(there, self.memory.bytes[np.where(there, source + np.arange(size), 0)], 0).astype(np.uint8)
        self.shared[(to + np.arange(size))[active]] = values[active]

    def _shfl(self, name: str, operands: list[str], active: Array) -> None:
        value, by = self._get(operands[1], np.uint32), self._get(operands[2], np.int64)
        lane = self.thread % LANES
        source = lane ^ by if ".bfly" in name else by
        self._set(operands[0].split("|")[0], value[self.thread - lane + source % LANES], active)

    def _warps(self, operand: str, dtype: Any) -> Array:
        """Registers in braces: [warps, lanes, registers]."""
        values = np.stack([self._get(one, dtype) for one in re.findall(r"[^{},\s]+", operand)], 1)
        return values.reshape(-1, LANES, values.shape[1])

    def _spread(self, operand: str, values: Array, active: Array) -> None:
        for index, one in enumerate(re.findall(r"[^{},\s]+", operand)):
            self._set(one, values[..., index].reshape(-1), active)

    def _mma(self, name: str, operands: list[str], active: Array) -> None:
        assert name.split(".")[3] == "m16n8k16", name
        halves = [np.ascontiguousarray(self._warps(operand, np.uint32)).view(np.uint16) for operand in operands[1:3]]
        a, b = (_from_bf16(x) if "bf16" in name else x.view(np.float16).astype(np.float32) for x in halves)
        # a [warps, group, 4, half of k, half of rows, 2], b [warps, group, 4, half of k, 2]
        left = a.reshape(-1, 8, 4, 2, 2, 2).transpose(0, 4, 1, 3, 2, 5).reshape(-1, 16, 16)
        right = b.reshape(-1, 8, 4, 2, 2).transpose(0, 3, 2, 4, 1).reshape(-1, 16, 8)
        start = self._warps(operands[3], np.float32).reshape(-1, 8, 4, 2, 2).transpose(0, 3, 1, 2, 4)
        total = left.astype(np.float64) @ right.astype(np.float64) + start.reshape(-1, 16, 8)
        out = total.astype(np.float32).reshape(-1, 2, 8, 4, 2).transpose(0, 2, 3, 1, 4).reshape(-1, LANES, 4)
        self._spread(operands[0], out, active)

    def _matrices(self, operand: str, count: int) -> Array:
        """Where the rows of 16 bytes lie whose addresses the lanes hold: [warps, matrices, 8, 16]."""
        rows = self._address(operand).reshape(-1, LANES)[:, : 8 * count].reshape(-1, count, 8)
        return rows[..., None] + np.arange(16)

    def _ldmatrix(self, name: str, operands: list[str], active: Array) -> None:
        count = len(re.findall(r"%", operands[0]))
        found = np.ascontiguousarray(self.shared[self._matrices(operands[1], count)]).view(np.uint16)
        found = found.swapaxes(-1, -2) if ".trans" in name else found
        pairs = np.ascontiguousarray(found).view(np.uint32).reshape(-1, count, LANES)
        self._spread(operands[0], pairs.swapaxes(1, 2), active)

    def _stmatrix(self, name: str, operands: list[str], active: Array) -> None:
        values = np.ascontiguousarray(self._warps(operands[1], np.uint32).swapaxes(1, 2))
        rows = values.view(np.uint16).reshape(*values.shape[:2], 8, 8)
        rows = rows.swapaxes(-1, -2) if ".trans" in name else rows
        self.shared[self._matrices(operands[0], values.shape[1])] = np.ascontiguousarray(rows).view(np.uint8)


def _compare(how: str, left: Array, right: Array) -> Array:
    """With a number that is none, true only for comparisons that end in u."""
    if how in ("num", "nan"):
        return (np.isnan(left) | np.isnan(right)) ^ (how == "num")
    found = COMPARE[how[:2]](left, right)
    none = (left != left) | (right != right)
    return found | none if how.endswith("u") else found & ~none


def _from_bf16(x: Array) -> Array:
    return (np.ascontiguousarray(x).astype(np.uint32) << 16).view(np.float32)


def _to_bf16(x: Array) -> Array:
    bits = x.astype(np.float32).view(np.uint32).astype(np.uint64)
    return (bits + 0x7FFF + (bits >> 16 & 1) >> 16).astype(np.uint16)
