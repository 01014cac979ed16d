"""How exact an operation must be: its error against FP64 is held against that of plain PyTorch in the same dtype."""

import torch

EPS = torch.finfo(torch.float32).eps


def assert_within_budget(fused, reference, *args, grad=False, poisoned=False, floor=4 * EPS):
    """`fused(*args)` is at most twice as far from `reference` in FP64 as `reference` in the arguments' dtype is, plus
    one rounding of the largest value and `floor`, the FP32 roundings on the way, whatever the result's dtype. With
    `grad`, so are the gradients of every tensor, for a random gradient of the output that is the same for all three.

    The functions return a tensor, or several as a dict. Where these are buffers that were `poisoned` with NaN, `fused`
    must leave NaN, or write an infinity, exactly where `reference` does; otherwise all must be finite.

    Returns the outputs (and gradients) of `fused`.
    """
    exact = _outputs(reference, [_to(x, torch.float64) for x in args], grad)
    plain = _outputs(reference, args, grad)
    found = _outputs(fused, args, grad)
    for (name, want), other, got in zip(exact.items(), plain.values(), found.values(), strict=True):
        assert got.shape == want.shape, f"{name}: {tuple(got.shape)}, not {tuple(want.shape)}"
        assert got.dtype == other.dtype, f"{name}: {got.dtype}, not {other.dtype}"
        finite = want.isfinite()
        assert poisoned or finite.all(), f"{name} is not finite in FP64"
        same = torch.where(finite, got.isfinite(), (got == want) | (got.isnan() & want.isnan()))
        assert same.all(), f"{name} is not finite, or was written, where the reference is not"
        if not finite.any():
            continue
        want, other, got = (x[finite] for x in (want, other, got))
        error = (got.double() - want).abs().max().item()
        allowed = 2 * (other.double() - want).abs().max().item()
        allowed += torch.finfo(got.dtype).eps * want.abs().max().item() + floor
        assert error <= allowed, f"{name}: error {error:.3g}, budget {allowed:.3g}"
    return list(found.values())


def _to(x, dtype):
    return x.to(dtype) if torch.is_tensor(x) and x.is_floating_point() else x


def _outputs(function, args, grad):
    """What `function` returns and, with `grad`, its gradients, by names for messages."""
    if not grad:
        out = function(*args)
        return out if isinstance(out, dict) else {"output": out}
    # Views keep their strides, and each tensor gets a gradient of its own.
    args = [x.detach().requires_grad_() if torch.is_tensor(x) and x.is_floating_point() else x for x in args]
    leaves = [x for x in args if torch.is_tensor(x) and x.requires_grad]
    out = function(*args)
    generator = torch.Generator().manual_seed(1)
    dout = torch.randn(out.shape, generator=generator, dtype=torch.float64) + 0.3
    # Rounded as the coarsest of the three sees it.
    dout = dout.to(torch.bfloat16).to(device=out.device, dtype=out.dtype)
    grads = torch.autograd.grad(out, leaves, dout, allow_unused=True)
    grads = [torch.zeros_like(x) if g is None else g for x, g in zip(leaves, grads, strict=True)]
    return {"output": out.detach()} | {f"gradient {i}": g for i, g in enumerate(grads)}
