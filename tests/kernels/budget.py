"""How exact an operation must be: its error against FP64 is held against that of plain PyTorch in the same dtype."""

import torch


def assert_within_budget(fused, reference, *args, grad=False):
    """`fused(*args)` is at most twice as far from `reference` in FP64 as `reference` in the arguments' dtype is, plus
    one rounding of the largest value. With `grad`, so are the gradients of every tensor, for a random gradient of the
    output that is the same for all three.

    Returns the outputs (and gradients) of `fused`.
    """
    exact = _outputs(reference, [_to(x, torch.float64) for x in args], grad)
    plain = _outputs(reference, args, grad)
    found = _outputs(fused, args, grad)
    for name, want, other, got in zip(_names(len(exact)), exact, plain, found, strict=True):
        assert got.shape == want.shape, f"{name}: {tuple(got.shape)}, not {tuple(want.shape)}"
        assert got.dtype == other.dtype, f"{name}: {got.dtype}, not {other.dtype}"
        assert got.isfinite().all(), f"{name} is not finite"
        error = (got.double() - want).abs().max().item()
        allowed = 2 * (other.double() - want).abs().max().item()
        # One rounding of the result, and the FP32 roundings on the way, whatever the result's dtype.
        allowed += torch.finfo(got.dtype).eps * want.abs().max().item() + 4 * torch.finfo(torch.float32).eps
        assert error <= allowed, f"{name}: error {error:.3g}, budget {allowed:.3g}"
    return found


def _names(count):
    return ["output", *(f"gradient {i}" for i in range(count - 1))]


def _to(x, dtype):
    return x.to(dtype) if torch.is_tensor(x) and x.is_floating_point() else x


def _outputs(function, args, grad):
    if not grad:
        return [function(*args)]
    # Views keep their strides, and each tensor gets a gradient of its own.
    args = [x.detach().requires_grad_() if torch.is_tensor(x) and x.is_floating_point() else x for x in args]
    leaves = [x for x in args if torch.is_tensor(x) and x.requires_grad]
    out = function(*args)
    generator = torch.Generator().manual_seed(1)
    dout = torch.randn(out.shape, generator=generator, dtype=torch.float64) + 0.3
    # Rounded as the coarsest of the three sees it.
    dout = dout.to(torch.bfloat16).to(device=out.device, dtype=out.dtype)
    grads = torch.autograd.grad(out, leaves, dout, allow_unused=True)
    return [out.detach(), *(torch.zeros_like(x) if g is None else g for x, g in zip(leaves, grads, strict=True))]
