"""What all parts of a deployed copy have in common, and the folding of weights into one another."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from globalvit.pytorch import is_transformed


class DeployedPart(nn.Module):
    """A part of a deployed copy: for inference, and never saved, because its weights are no longer the model's."""

    def __init__(self) -> None:
        super().__init__()
        self.register_state_dict_pre_hook(_refuse_saving)


class PreparedPart(DeployedPart):
    """A part whose weights are prepared for one dtype on the CPU.

    Args:
        dtype: of the tokens and maps.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def check(self, x: Tensor) -> None:
        """Refuse what the prepared weights cannot compute with.

        Raises:
            ValueError: the dtype or device is another one, or a derivative is asked for.
        """
        if x.dtype != self.dtype:
            got, wanted = _name(x.dtype), _name(self.dtype)
            raise ValueError(
                f"expected {wanted}, got {got}: the copy was deployed for {wanted} and does not run under autocast; "
                f"deploy the model in {got}"
            )
        if x.device.type != "cpu":
            raise ValueError(
                f"expected images on the CPU, got {x.device.type}: the copy was deployed for the CPU; move the model "
                f"that it was made from and deploy that"
            )
        # Compilers have their own way to find out; a graph that is compiled without gradients has none.
        if not torch.compiler.is_compiling() and (is_transformed() or (torch.is_grad_enabled() and x.requires_grad)):
            raise ValueError(
                "a deployed copy has no derivatives; use the model that it was made from, or torch.no_grad()"
            )


def folded(linear: nn.Linear, *, norm: nn.LayerNorm | None = None, scale: Tensor | None = None) -> nn.Linear:
    """Return a Linear that does what a norm's factors and offsets, `linear` and a layer scale do one after another."""
    weight = linear.weight.detach().float()
    bias = torch.zeros_like(weight[:, 0]) if linear.bias is None else linear.bias.detach().float()
    if norm is not None and norm.weight is not None:
        bias = bias if norm.bias is None else bias + weight @ norm.bias.float()
        weight = weight * norm.weight.float()
    if scale is not None:
        weight, bias = weight * scale.float()[:, None], bias * scale.float()
    return linear_of(weight, bias, linear.weight.dtype)


def linear_of(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> nn.Linear:
    """Return a Linear with copies of a weight (K, C) and a bias (K,)."""
    outputs, inputs = weight.shape
    words = {"bias": bias is not None, "device": weight.device, "dtype": dtype}
    # Initial weights would only cost random numbers.
    linear = cast("nn.Linear", nn.utils.skip_init(nn.Linear, inputs, outputs, **words))
    linear.requires_grad_(requires_grad=False)
    linear.weight.copy_(weight)
    if bias is not None:
        linear.bias.copy_(bias)
    return linear


def _refuse_saving(module: nn.Module, *_: Any) -> None:  # noqa: ARG001 - the hook's signature
    raise ValueError("a deployed copy cannot be saved; save the model that it was made from")


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
