"""Making a deployed copy: which parts are replaced by what, and the comparison of each with its original.

Folding changes outputs by rounding only: layer scale into the Linear before it, factors and offsets of a norm into the
Linear after it, batch norms into the convolutions before them. A norm before windowed attention keeps its factors: what
windows see outside the grid is zero between the two.
"""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from globalvit import pytorch
from globalvit.deploy import kernel_parts as kernels
from globalvit.deploy import plain_parts as plain
from globalvit.deploy.part import DeployedPart
from globalvit.hardware import native_bf16
from globalvit.kernels.cpu import convolution
from globalvit.kernels.cpu.choices import Candidates, Choices, Group, choose
from globalvit.kernels.cpu.linear import computes
from globalvit.models import gcvit, gpvit, ops
from globalvit.models.layers import ConvNormReLU, DropPath, Mlp, SqueezeExcite
from globalvit.pytorch import is_plain_module, is_plain_tree

logger = logging.getLogger(__name__)
Model = TypeVar("Model", bound=nn.Module)

# Largest difference between a part and its original, relative to the largest number of the original.
BOUNDS = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}
# Images of the comparison, and their side for models that do not state one.
IMAGES, SIDE = 2, 224


@dataclass(frozen=True, slots=True)
class Rule:
    """Which modules are replaced, and by what.

    Attributes:
        holds: whether a module is replaced.
        make: its replacement.
        is_leaf: whether the module is one of PyTorch's layers, which is replaced only inside modules of this package:
            others may read its weights.
    """

    holds: Callable[[Any], bool]
    make: Callable[[Any], nn.Module]
    is_leaf: bool = False


def deploy(model: Model) -> Model:
    """Return a copy for inference on the device and in the dtype that `model` has now.

    The copy is in evaluation mode and has no gradients; `model` stays as it is. Every replaced part is compared with
    its original on random images of the model's size, and one that differs by more than rounding stays PyTorch's.
    """
    deployed = pytorch.copied(model).eval().requires_grad_(requires_grad=False)
    parameter = next(deployed.parameters())
    with torch.no_grad(), torch.autocast(parameter.device.type, enabled=False):
        candidates = dict(_candidates(deployed, _rules(deployed)))
        if candidates:
            _replace_verified(deployed, candidates)
    return deployed


def is_deployed(model: nn.Module) -> bool:
    """Whether a model, or a part of it, is such a copy."""
    return any(isinstance(module, DeployedPart) for module in model.modules())


def _rules(model: nn.Module) -> Sequence[Rule]:
    """Return the rules for the model's device and dtype; the first that holds for a module counts."""
    parameter = next(model.parameters())
    device, dtype = parameter.device.type, parameter.dtype
    is_uniform = all((one.dtype, one.device) == (dtype, parameter.device) for one in model.parameters())
    if device != "cpu" or not is_uniform or ops.chosen_kernels() == "torch":
        return FOLDING
    if ops.kernels_for(device) != "c" or not computes(dtype):
        return BY_ONEDNN if _has_onednn(dtype) else FOLDING
    # The C kernels, where they or the exceptions from them were asked for by name.
    used = "c" if ops.torch_operations() is not None else deployed_choices(dtype).used("block", "c")
    return {"c": BY_KERNELS, "onednn": BY_ONEDNN, "torch": FOLDING}[used]


def _has_onednn(dtype: torch.dtype) -> bool:
    """Whether oneDNN has fast products of a dtype on this CPU."""
    has_products = dtype == torch.float32 or (dtype == torch.bfloat16 and native_bf16("cpu") is not None)
    return has_products and pytorch.has_onednn_operators()


def deployed_blocks(dtype: torch.dtype) -> Group:
    """Return a deployed block of GC ViT by the C kernels (`c`), by oneDNN (`onednn`) and by PyTorch (`torch`)."""
    return Group(f"deployed blocks in {str(dtype).removeprefix('torch.')}", lambda: _blocks(dtype))


@cache
def deployed_choices(dtype: torch.dtype) -> Choices:
    """Return what computes deployed blocks fastest on this CPU, in a dtype that the C kernels compute."""
    return choose(deployed_blocks(dtype))


def _blocks(dtype: torch.dtype) -> Iterator[Candidates]:
    """Yield a block of GC ViT in the forms that rules make of it."""
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.manual_seed(0)
        block = (
            gcvit.Block(128, 4, 7, 3.0, 1.0, 0.0, is_global=False).to(dtype).eval().requires_grad_(requires_grad=False)
        )
        x, query = torch.randn(2, 28, 28, 128).to(dtype), torch.empty(0)
    forms = {"c": kernels.KernelBlock(block)}
    forms |= {"onednn": plain.OneDNNBlock(block)} if _has_onednn(dtype) else {}
    forms |= {"torch": plain.FoldedBlock(block)}
    yield Candidates("block", {name: partial(form, x, query) for name, form in forms.items()})


def _candidates(parent: nn.Module, rules: Sequence[Rule]) -> Iterator[tuple[nn.Module, nn.Module]]:
    """Yield modules with their replacements, from the outside in; nothing inside a replaced module is yielded."""
    is_ours = type(parent).__module__.startswith("globalvit.")
    for child in parent.children():
        rule = next((rule for rule in rules if (is_ours or not rule.is_leaf) and rule.holds(child)), None)
        made = None if rule is None else _make(rule, child)
        if made is not None:
            yield child, made
        else:
            yield from _candidates(child, rules)


def _make(rule: Rule, original: nn.Module) -> nn.Module | None:
    try:
        return rule.make(original)
    except Exception as error:  # PyTorch's own part computes in any case
        logger.warning("deploy(): %s stays as it is: %s", type(original).__name__, error)
        return None


def _replace_verified(model: nn.Module, candidates: Mapping[nn.Module, nn.Module]) -> None:
    """Replace what computes the same as its original in a pass of the model, and compare the results of that pass."""
    verdicts: dict[nn.Module, bool] = {}

    def compare(original: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        verdicts[original] = verdicts.get(original, True) and _agrees(candidates[original], inputs, output)

    images = _images(model)
    handles = [original.register_forward_hook(compare) for original in candidates]
    try:
        with ops.set_kernels("torch"):
            expected = _tensors(model(images))
    finally:
        for handle in handles:
            handle.remove()
    _warn_of({type(original).__name__ for original, agrees in verdicts.items() if not agrees})
    chosen = {original: candidates[original] for original, agrees in verdicts.items() if agrees}
    _swap(model, chosen)
    if not _computes(model, images, expected):
        _swap(model, {replacement: original for original, replacement in chosen.items()})
        _warn_of({"the whole model"})


def _agrees(replacement: nn.Module, inputs: tuple[Any, ...], output: Any) -> bool:
    """Whether a part gives the output of its original, which came from these inputs."""
    try:
        # Some parts write over their inputs.
        found = replacement(*(x.clone() if isinstance(x, Tensor) else x for x in inputs))
    except Exception as error:  # PyTorch's own part computes in any case
        logger.warning("%s: %s", type(replacement).__name__, error)
        return False
    return _is_near(found, output)


def _computes(model: nn.Module, images: Tensor, expected: Sequence[Tensor]) -> bool:
    try:
        found = _tensors(model(images))
    except Exception as error:  # a module of the user's may expect the original parts
        logger.warning("the deployed copy: %s", error)
        return False
    return len(found) == len(expected) and all(map(_is_near, found, expected))


def _is_near(found: Any, expected: Any) -> bool:
    if not isinstance(found, Tensor) or not isinstance(expected, Tensor):
        return False
    if (found.shape, found.dtype) != (expected.shape, expected.dtype):
        return False
    difference, largest = (found.double() - expected.double()).abs().max(), expected.double().abs().max()
    return bool(difference <= BOUNDS[expected.dtype] * largest)


def _tensors(outputs: Any) -> list[Tensor]:
    """Return all tensors of nested lists and dictionaries."""
    if isinstance(outputs, Tensor):
        return [outputs]
    values = outputs.values() if isinstance(outputs, Mapping) else outputs
    return [tensor for value in values for tensor in _tensors(value)] if isinstance(outputs, Mapping | Sequence) else []


def _images(model: nn.Module) -> Tensor:
    """Return random images of the size that the model was made for."""
    backbone, parameter = getattr(model, "backbone", model), next(model.parameters())
    height, width = getattr(getattr(model, "spec", None), "image_size", None) or (SIDE, SIDE)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(IMAGES, getattr(backbone, "in_channels", 3), height, width, generator=generator, device="cpu")
    return images.to(parameter.device, parameter.dtype)


def _swap(model: nn.Module, replacements: Mapping[nn.Module, nn.Module]) -> None:
    for parent in list(model.modules()):
        for name, child in pytorch.children(parent):
            if child in replacements:
                parent.add_module(name, replacements[child])


def _warn_of(names: set[str]) -> None:
    if names:
        logger.warning(
            "deploy(): the fast form of %s differs from the model's own, which is kept", ", ".join(sorted(names))
        )


def _is_block(block: Any) -> bool:
    """Whether it is a block of either network with all its parts as they were made."""
    has_kind = type(block) in (gcvit.Block, gpvit.LocalBlock)
    return (
        has_kind
        and is_plain_tree(block)
        and type(block.attention) in (gcvit.WindowAttention, gpvit.StripeAttention)
        and _is_mlp(block.mlp)
        and type(block.drop_path) is DropPath
        and all(map(_is_norm, (block.norm1, block.norm2)))
        and all(_is_linear(child) for child in block.attention.children() if not isinstance(child, nn.Conv2d))
    )


def _is_mlp(mlp: Any) -> bool:
    return type(mlp) is Mlp and _is_gelu(mlp.activation) and _is_linear(mlp.fc1) and _is_linear(mlp.fc2)


def _is_gelu(activation: Any) -> bool:
    return type(activation) is nn.GELU and activation.approximate == "none"


def _is_linear(linear: Any) -> bool:
    return type(linear) is nn.Linear and linear.bias is not None


def _is_made_of(*kinds: type[nn.Module]) -> Callable[[Any], bool]:
    """Return a condition: a module is of the first class, and everything inside it is of these classes."""
    return lambda module: (
        type(module) is kinds[0]
        and is_plain_tree(module)
        and all(type(part) in kinds and (type(part) is not nn.LayerNorm or _is_norm(part)) for part in module.modules())
    )


def _is_branch(branch: Any) -> bool:
    kinds = (gcvit.FusedMBConv, SqueezeExcite, nn.Conv2d, nn.Linear, nn.GELU, nn.Identity)
    return (
        _is_made_of(*kinds)(branch)
        and _is_gelu(branch.activation)
        and type(branch.squeeze_excite) in (SqueezeExcite, nn.Identity)
        and _is_depthwise(branch.depthwise)
        and branch.pointwise.kernel_size == (1, 1)
        and branch.pointwise.bias is None
    )


def _is_downsample(module: Any) -> bool:
    return (
        type(module) is gcvit.Downsample
        and is_plain_tree(module)
        and _is_branch(module.branch)
        and all(map(_is_norm, (module.norm1, module.norm2)))
        and type(module.reduction) is nn.Conv2d
        and convolution.computes(module.reduction)
    )


def _is_stem(stem: Any) -> bool:
    return (
        type(stem) is gcvit.Stem
        and is_plain_tree(stem)
        and type(stem.conv) is nn.Conv2d
        and _is_downsample(stem.downsample)
    )


def _is_depthwise(conv: Any) -> bool:
    return (
        type(conv) is nn.Conv2d
        and conv.groups == conv.in_channels == conv.out_channels
        and (conv.kernel_size, conv.padding) == ((3, 3), (1, 1))
        and (conv.stride, conv.dilation, conv.padding_mode) == ((1, 1), (1, 1), "zeros")
    )


def _is_conv_relu(layer: Any) -> bool:
    return _is_made_of(ConvNormReLU, nn.Conv2d, nn.BatchNorm2d)(layer) and layer.norm.track_running_stats


def _is_mix(mix: Any) -> bool:
    kinds = (gpvit.Mix, nn.LayerNorm, nn.Linear, nn.ModuleDict, Mlp, nn.GELU, DropPath)
    return _is_made_of(*kinds)(mix) and _is_mlp(mix.channels) and all(map(_is_linear, mix.tokens.values()))


def _is_scatter(scatter: Any) -> bool:
    kinds = (gpvit.Scatter, nn.LayerNorm, nn.Linear, Mlp, nn.GELU, DropPath)
    linears = (getattr(scatter, name, None) for name in ("query", "key", "value", "proj", "merge"))
    return _is_made_of(*kinds)(scatter) and _is_mlp(scatter.mlp) and all(map(_is_linear, linears))


def _is_norm(norm: Any) -> bool:
    return is_plain_module(norm, nn.LayerNorm) and norm.weight is not None and len(norm.normalized_shape) == 1


def _is_patches(conv: Any) -> bool:
    """Whether it is a convolution of patches that do not overlap, as in GPViT's stem."""
    return (
        is_plain_module(conv, nn.Conv2d)
        and conv.kernel_size == conv.stride
        and conv.kernel_size[0] > 1
        and convolution.computes(conv)
    )


FOLDING = (
    Rule(_is_conv_relu, plain.FoldedConvReLU),
    Rule(lambda block: type(block) is gcvit.Block and _is_block(block) and block.scale1 is not None, plain.FoldedBlock),
)
BY_ONEDNN = (
    Rule(_is_conv_relu, plain.OneDNNConv),
    Rule(_is_block, plain.OneDNNBlock),
    Rule(_is_branch, plain.OneDNNBranch),
    Rule(lambda mlp: is_plain_tree(mlp) and _is_mlp(mlp), plain.onednn_mlp),
    Rule(lambda linear: is_plain_module(linear, nn.Linear), plain.OneDNNLinear, is_leaf=True),
)
BY_KERNELS = (
    Rule(lambda block: type(block) is gcvit.Block and _is_block(block), kernels.KernelBlock),
    Rule(lambda block: type(block) is gpvit.LocalBlock and _is_block(block), kernels.KernelLocalBlock),
    Rule(_is_made_of(gpvit.Gather, nn.LayerNorm, nn.Linear), kernels.KernelGather),
    Rule(_is_mix, kernels.KernelMix),
    Rule(_is_scatter, kernels.KernelScatter),
    Rule(_is_stem, kernels.KernelStem),
    Rule(_is_downsample, kernels.KernelDownsample),
    Rule(_is_branch, kernels.KernelBranch),
    Rule(lambda layer: _is_conv_relu(layer) and _is_depthwise(layer.conv), kernels.KernelConvReLU),
    Rule(_is_conv_relu, plain.OneDNNConv if pytorch.has_onednn_operators() else plain.FoldedConvReLU),
    Rule(_is_patches, kernels.KernelConv),
    Rule(lambda mlp: is_plain_tree(mlp) and _is_mlp(mlp), plain.onednn_mlp),
    Rule(lambda linear: is_plain_module(linear, nn.Linear), kernels.KernelLinear, is_leaf=True),
    Rule(_is_norm, kernels.KernelNorm, is_leaf=True),
)
