"""What NVRTC makes of the persistent kernel, as C++ that run.cpp runs: each instruction of the PTX is a statement.

So what runs on a CPU is what was compiled for a GPU, its inline PTX included; device.cuh beside this file has the rest:
fibers, shuffles, barriers and the copy engine. See the PTX ISA manual for what instructions mean.
"""

import re

KINDS = {"r": "uint32_t", "rd": "uint64_t", "rs": "uint16_t", "f": "float", "p": "bool"}
TYPES = {
    "b16": "uint16_t", "u16": "uint16_t", "s16": "int16_t", "b32": "uint32_t", "u32": "uint32_t", "s32": "int32_t",
    "b64": "uint64_t", "u64": "uint64_t", "s64": "int64_t", "f32": "float", "f16": "uint16_t", "pred": "bool",
}  # fmt: skip
COMPARE = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">=", "lo": "<", "hi": ">", "hs": ">="}
INFIX = {"add": "+", "sub": "-", "and": "&", "or": "|", "xor": "^"}
SPECIAL = {"%tid.x": "unsigned(threadIdx.x)", "%ctaid.x": "unsigned(blockIdx.x)", "shared": "0", "_": "0"}
IGNORED = ("prefetch", "fence", "membar", ".pragma")


def to_cpp(ptx: str) -> str:
    """The source of `decode_steps` as run.cpp calls it."""
    body = ptx[ptx.index("\n{\n") + 3 : ptx.rindex("\n}")]
    out = [
        "#include <arguments.cuh>",
        "#include <ptx.h>",
        "using std::max;",
        "using std::min;",
        "void decode_steps(const Arguments &given) {",
    ]
    statements: list[str] = []
    for line in (re.sub(r"//.*", "", line).strip() for line in body.splitlines()):
        if declared := re.match(r"\.reg \.\w+\s+%([a-z]+)<(\d+)>;", line):
            out.append(f"  {KINDS[declared[1]]} {declared[1]}[{declared[2]}];")
        elif label := re.match(r"\$(\w+):$", line):
            statements.append(f"{label[1]}:;")
        elif line and not line.startswith(IGNORED):
            statements.append(_statement(line))
    return "\n".join([*out, *statements, "}", ""])


def _statement(line: str) -> str:
    found = re.match(r"(?:@(!?)%p(\d+)\s+)?(.*?);?$", line)
    assert found
    done = _instruction(found[3])
    return f"  if ({found[1]}p[{found[2]}]) {{ {done} }}" if found[2] else f"  {{ {done} }}"


def _get(operand: str, kind: str) -> str:
    """An operand as a number of a type."""
    if operand in SPECIAL:
        return f"({TYPES[kind]})({SPECIAL[operand]})"
    if register := re.match(r"%([a-z]+)(\d+)$", operand):
        name = f"{register[1]}[{register[2]}]"
        if kind == "f32":
            return name if register[1] == "f" else f"__uint_as_float({name})"
        return f"({TYPES[kind]})__float_as_uint({name})" if register[1] == "f" else f"({TYPES[kind]})({name})"
    if operand.startswith(("0f", "0F")):
        return f"__uint_as_float(0x{operand[2:]}u)" if kind == "f32" else f"0x{operand[2:]}u"
    if operand.endswith("param_0"):
        return "(uint64_t)(uintptr_t)&given"
    return f"({TYPES[kind]})({operand}ll)"


def _set(operand: str, kind: str, value: str) -> str:
    register = re.match(r"%([a-z]+)(\d+)$", operand)
    assert register, operand
    name = f"{register[1]}[{register[2]}]"
    if register[1] == "f":
        return f"{name} = {value if kind == 'f32' else f'__uint_as_float({value})'};"
    return f"{name} = {f'__float_as_uint({value})' if kind == 'f32' else value};"


def _address(operand: str, shared: bool) -> str:
    base, _, offset = operand.strip("[]").partition("+")
    where = f"{_get(base, 'u64')} + ({offset or 0})"
    return f"fibers::place((uint32_t)({where}))" if shared else f"((unsigned char *)({where}))"


def _instruction(text: str) -> str:
    if "try_wait" in text:
        names = re.search(r"p, \[(%r\d+)\], (%r\d+); selp.u32 (%r\d+)", text)
        assert names, text
        return _set(names[3], "u32", f"fibers::passed({_address(names[1], True)}, {_get(names[2], 'u32')})")
    if inner := re.match(r"\{ \.reg \.b32 tmp; (.*?); \}", text):
        return _instruction(inner[1].replace("tmp", "_"))
    name, _, rest = text.partition(" ") if "\t" not in text else text.partition("\t")
    operands = [o.strip() for o in re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+", rest)]
    parts = name.strip().split(".")
    op, kind = parts[0], parts[-1]
    if op == "bra":
        return f"goto {operands[0].lstrip('$')};"
    if op == "ret":
        return "return;"
    if op == "trap":
        return "abort();"
    if op == "bar":
        return "__syncthreads();"
    if op in ("ld", "st"):
        return _move(parts, operands)
    if op == "shfl":
        how = "__shfl_xor_sync" if "bfly" in parts else "__shfl_sync"
        value = f"{how}({_get(operands[4], 'u32')}, {_get(operands[1], 'u32')}, {_get(operands[2], 's32')})"
        return _set(operands[0].split("|")[0], "u32", value)
    if op == "mbarrier":
        if "init" in parts:
            return f"start_counter((Word *){_address(operands[0], True)});"
        return f"fibers::expect({_address(operands[1], True)}, {_get(operands[2], 'u32')});"
    if op == "cp":
        to, counter = (_address(operands[i], True) for i in (0, 3))
        return f"fibers::copy({to}, {_address(operands[1], False)}, {_get(operands[2], 'u32')}, {counter});"
    if op == "mov" and "{" in rest:
        return _pack(operands)
    if op == "setp":
        return _compare(parts[1], kind, operands)
    return _set(operands[0], kind if op != "cvt" else parts[-2], _value(op, parts, operands[1:]))


def _move(parts: list[str], operands: list[str]) -> str:
    """Loads and stores, of up to four numbers."""
    load, kind = parts[0] == "ld", parts[-1]
    registers = re.findall(r"[^{},\s]+", operands[0 if load else 1])
    place = _address(operands[1 if load else 0], "shared" in parts)
    size = {"16": 2, "32": 4, "64": 8}[kind[1:]]
    done = [f"unsigned char *at = {place}; fibers::aligned(at, {size * len(registers)});"]
    if "relaxed" in parts:
        # Who waits for a word lets others go on.
        done.append("fibers::yield();" if load else "fibers::progress = true;")
    for i, register in enumerate(registers):
        there = f"*({TYPES[kind]} *)(at + {i * size})"
        done.append(_set(register, kind, there) if load else f"{there} = {_get(register, kind)};")
    return " ".join(done)


def _pack(operands: list[str]) -> str:
    to, source = (re.findall(r"[^{},\s]+", operand) for operand in operands)
    bits = 32 if (to if len(source) > 1 else source)[0].startswith("%rd") else 16
    wide = f"b{2 * bits}"
    if len(source) > 1:
        low, high = (f"(uint64_t)({_get(one, f'b{bits}')})" for one in source)
        return _set(to[0], wide, f"({TYPES[wide]})({low} | {high} << {bits})")
    halves = (f"({TYPES[f'b{bits}']})({_get(source[0], wide)} >> {shift})" for shift in (0, bits))
    return " ".join(_set(one, f"b{bits}", half) for one, half in zip(to, halves, strict=True) if one != "_")


def _compare(how: str, kind: str, operands: list[str]) -> str:
    left, right = (_get(operand, kind) for operand in operands[1:])
    plain = how.removesuffix("u") if how not in COMPARE else how
    value = f"{left} {COMPARE[plain]} {right}"
    if plain != how:
        # With a number that is none it is true.
        value = f"!({left} == {left}) || !({right} == {right}) || {value}"
    return _set(operands[0], "pred", value)


def _value(op: str, parts: list[str], operands: list[str]) -> str:
    kind = parts[-1]
    if op == "cvt":
        return _convert(parts, operands[0])
    if op == "selp":
        return f"{_get(operands[2], 'pred')} ? {_get(operands[0], kind)} : {_get(operands[1], kind)}"
    if op in ("shl", "shr"):
        by, bits = _get(operands[1], "u32"), kind[1:]
        return f"fibers::{op}<{TYPES[kind]}>({_get(operands[0], kind)}, {by}, {bits})"
    values = [_get(operand, kind) for operand in operands]
    cpp = TYPES[kind]
    if op == "cvta" and "shared" in parts:
        # To an address among all, which for those of global memory are what they are there.
        return f"(uint64_t)(uintptr_t)fibers::place({values[0]})"
    if op in INFIX:
        return f"({cpp})({values[0]} {INFIX[op]} {values[1]})"
    if op in ("mul", "mad"):
        if kind == "f32":
            return f"{values[0]} * {values[1]}"
        if "wide" in parts:
            wide = "int64_t" if kind[0] == "s" else "uint64_t"
            product = f"({wide})({values[0]}) * ({wide})({values[1]})"
            return f"{product} + {_get(operands[2], 'u64')}" if op == "mad" else product
        if "hi" in parts:
            return f"({cpp})((__int128)({values[0]}) * ({values[1]}) >> {kind[1:]})"
        product = f"(uint64_t)({values[0]}) * (uint64_t)({values[1]})"
        return f"({cpp})({product} + (uint64_t)({values[2]}))" if op == "mad" else f"({cpp})({product})"
    if op == "fma":
        return f"fibers::fma_down({', '.join(values)})" if "rm" in parts else f"fmaf({', '.join(values)})"
    if op == "bfi":
        return (
            f"fibers::insert<{cpp}>({values[0]}, {values[1]}, {_get(operands[2], 'u32')}, {_get(operands[3], 'u32')})"
        )
    if op == "div":
        return f"{values[0]} / {values[1]}"
    if op == "rem":
        return f"{values[0]} % {values[1]}"
    if op in ("min", "max"):
        return f"{'f' + op if kind == 'f32' else op}({values[0]}, {values[1]})"
    one = {
        "mov": "{0}", "neg": "-{0}", "not": "!{0}" if kind == "pred" else "~{0}", "abs": "fabsf({0})",
        "ex2": "exp2f({0})", "sqrt": "sqrtf({0})", "rcp": "1 / {0}", "cvta": "{0}",
        "prmt": "__byte_perm({0}, {1}, {2})",
    }  # fmt: skip
    return one[op].format(*values)


def _convert(parts: list[str], operand: str) -> str:
    to, source = parts[-2:]
    value = _get(operand, source)
    if "sat" in parts:
        return f"fminf(fmaxf({value}, 0.0f), 1.0f)"
    if source == "f16":
        return f"half_to_float({value})"
    if to == "f16":
        return f"float_to_half({value})"
    if source == "f32" and to == "f32":
        return value
    return f"({TYPES[to]})({value})"
