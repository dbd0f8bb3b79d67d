# SPDX-License-Identifier: MIT
"""lowbit for PEFT: LoRA over frozen low-bit layers.

PEFT takes the stored weight of an nn.Linear for its float weight. On codes that goes wrong without
a word, so every layer of lowbit gets the LoRA layer below, and whatever else would read the codes
is refused before anything is changed.

peft.prepare_model_for_kbit_training works, but enables gradient checkpointing only for the methods
that it knows by name: call model.gradient_checkpointing_enable() yourself; if it is reentrant, it
also needs model.enable_input_require_grads().
"""

import functools
import warnings
from collections.abc import Callable, Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from peft import PeftType
from peft.tuners.lora.layer import Linear as PeftLinear
from peft.tuners.lora.variants import DoraLinearVariant
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, check_adapters_to_merge
from torch import Tensor, nn

from lowbit.nn import LowbitLinear
from lowbit.nn.lowbit_linear import float_weight
from lowbit.nn.lowbit_module import LowbitModule

# What of LoRA works on codes: the values of init_lora_weights, and the options that make a variant.
_INITS = ("gaussian", "eva", "orthogonal", "olora", "mica")  # pissa and pissa_niter_<n> as well
_VARIANTS = ("use_dora", "alora_invocation_tokens", "arrow_config")


def _on_float_weight(init: Callable[..., None], moves_base: bool) -> Callable[..., None]:
    """An initialisation of PEFT's that reads the weight of the base layer, and may subtract from it
    what it puts into the adapter. It gets a float layer; the rest is quantized again."""

    @functools.wraps(init)
    def run(self: "Linear", *args: Any) -> None:
        layer, wrapped = self.get_base_layer(), self.base_layer
        if moves_base and self.merged:
            raise ValueError(
                f"{init.__name__} changes the weight under the adapters {self.merged_adapters}, "
                "which are merged into it; unmerge them first"
            )
        _check_here(layer)
        plain = nn.Linear(layer.in_features, layer.out_features, bias=False, device="meta")
        plain.weight = nn.Parameter(layer.dequantize(torch.float32), requires_grad=False)
        self.base_layer = plain
        try:
            init(self, *args)
        finally:
            self.base_layer = wrapped
        if moves_base:
            _quantize_into(layer, plain.weight.detach())

    return run


class Linear(PeftLinear):
    """LoRA over a layer of lowbit: y = layer(x) + scaling * B A x, and DoRA likewise.

    merge() quantizes W + delta with the layer's own options (threshold, offset and absmax_dtype, or
    codebook, blocksize and double quantization). That rounds the adapter as it rounded W: what is
    finer than a quantization step is lost. Merged adapters are summed before they are quantized, so
    merging them one by one gives the same bits as merging them together. To merge without loss,
    call model.dequantize(), attach the adapter to the result, and merge there.

    unmerge() puts the bits from before the merge back, exactly. Until then the layer keeps them, so
    a merged adapter costs the memory of the layer's codes once more; merge_and_unload() frees them
    layer by layer.

    A sum that is not finite raises ValueError with safe_merge and without: codes hold no NaN.
    """

    _unmerged: dict[str, Tensor] | None = None

    # The weight is [N, K], also of a layer that was a Conv1D.
    fan_in_fan_out = property(lambda self: False, lambda self, value: None)

    pissa_init = _on_float_weight(PeftLinear.pissa_init, moves_base=True)
    olora_init = _on_float_weight(PeftLinear.olora_init, moves_base=True)
    orthogonal_init = _on_float_weight(PeftLinear.orthogonal_init, moves_base=False)
    if hasattr(PeftLinear, "mica_init"):
        mica_init = _on_float_weight(PeftLinear.mica_init, moves_base=False)

    @torch.no_grad()
    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        names = check_adapters_to_merge(self, adapter_names) or []
        names = self.merged_adapters + [name for name in names if name in self.lora_A]
        if names == self.merged_adapters:
            return
        layer = self.get_base_layer()
        _check_here(layer)
        before = _stored(layer)
        unmerged = self._unmerged or before
        _put_back(layer, unmerged)
        try:
            weight, bias = self._sum(names)
            _quantize_into(layer, weight)
        except BaseException:
            _put_back(layer, before)
            raise
        if bias is not None:
            layer.bias.data = bias
        self._unmerged = unmerged
        self.merged_adapters = names

    def unmerge(self) -> None:
        if not self.merged:
            warnings.warn("Already unmerged. Nothing to do.", stacklevel=2)
            return
        layer = self.get_base_layer()
        _check_here(layer)
        _put_back(layer, self._unmerged)
        self._unmerged = None
        self.merged_adapters = []

    def _sum(self, names: list[str]) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of the layer with the adapters in it, as forward() adds them."""
        layer = self.get_base_layer()
        base = layer.dequantize(torch.float32)
        weight, added = base, None
        for name in names:
            variant = self.lora_variant.get(name)
            if self.lora_bias[name]:
                if layer.bias is None:
                    raise RuntimeError(
                        f"adapter {name} has a bias (lora_bias=True), and the layer that it would "
                        "be merged into has none"
                    )
                shift = self.lora_B[name].bias.to(base) * self.scaling[name]
                added = shift if added is None else added + shift
            if variant is None or isinstance(variant, DoraLinearVariant):
                delta = self.get_delta_weight(name).to(base)
                weight = weight + delta
            else:
                weight = variant.merge_safe(self, name, weight)
            if isinstance(variant, DoraLinearVariant):
                magnitude = self.lora_magnitude_vector[name].weight.to(base)
                factor = magnitude / torch.linalg.vector_norm(base + delta, dim=1)
                weight = factor[:, None] * weight
                added = None if added is None else factor * added
            if not (weight.isfinite().all() and (added is None or added.isfinite().all())):
                raise ValueError(
                    f"NaNs detected in the merged weights. The adapter {name} seems to be broken"
                )
        return weight, None if added is None else (layer.bias + added).to(layer.bias.dtype)


@torch.no_grad()
def loftq_(
    model: nn.Module,
    weights: nn.Module | Mapping[str, Tensor] | str | Path,
    *,
    adapter_name: str = "default",
    iterations: int = 1,
    progress: Callable[[str, int, int], None] | None = None,
) -> dict[str, tuple[float, float]]:
    """Starts a LoRA adapter at what quantization took away from the weights (LoftQ,
    arXiv:2310.08659), in place.

    For every low-bit layer with the adapter, B A is the best approximation of rank r of
    (W - W_q) / scaling, where W_q is the layer's weight and W the float weight it stands for. With
    iterations > 1 that alternates with quantizing W - scaling * B A, and the round with the
    smallest error is kept. Then the base has changed: save it with the adapter, which fits no other
    one. With iterations = 1 the base keeps its bits, and the adapter fits every model quantized
    like it.

    Args:
        model: a PEFT model, or any model that PEFT has put the adapter into.
        weights: the float model, its state dict, or a folder or file with it in safetensors (read
            one layer at a time). The keys are those of the quantized model, up to a prefix.
        adapter_name: the adapter, not merged. It loses what it has learned.
        iterations: how often the residual is decomposed.
        progress: called after each layer with its name, how many are done, and how many there are.

    Returns: for every layer |W - W_q| / |W| and |W - W_q - scaling * B A| / |W|, Frobenius norms
        before and after.

    ValueError, with the model unchanged: no low-bit layer has the adapter; one is offloaded, or has
    adapters merged, or others beside it where iterations > 1, a rank beyond its size or a scaling
    of 0; a weight is missing, of another shape, not finite, or more than half of itself away from
    the quantized one.
    """
    if iterations < 1:
        raise ValueError(f"loftq_: iterations is {iterations}, expected at least 1")
    adapted = {
        name.removeprefix("base_model.model."): module
        for name, module in model.named_modules()
        if isinstance(module, Linear) and adapter_name in module.lora_A
    }
    if not adapted:
        raise ValueError(f"loftq_: no low-bit layer of model has an adapter {adapter_name!r}")
    for name, module in adapted.items():
        _check_here(module.get_base_layer())
        if module.merged:
            raise ValueError(f"loftq_: {name} has {module.merged_adapters} merged; unmerge first")
        rank, most = module.r[adapter_name], min(module.in_features, module.out_features)
        if rank > most:
            raise ValueError(f"loftq_: {name} has rank {rank}, expected at most {most}")
        if module.scaling[adapter_name] == 0:
            raise ValueError(f"loftq_: {name} has scaling 0, expected another lora_alpha")
        if iterations > 1 and len(module.lora_A) > 1:
            raise ValueError(
                f"loftq_: {name} has the adapters {', '.join(module.lora_A)}, and iterations = "
                f"{iterations} would change the weight under all of them; expected one adapter"
            )
    find = _finder(weights)
    starts, errors = [], {}
    for done, (name, module) in enumerate(adapted.items(), 1):
        start, errors[name] = _loftq(module, adapter_name, name, find(name), iterations)
        starts.append((module, *start))
        if progress is not None:
            progress(name, done, len(adapted))
    for module, stored, down, up in starts:
        _put_back(module.get_base_layer(), stored)
        module.lora_A[adapter_name].weight.data.copy_(down)
        module.lora_B[adapter_name].weight.data.copy_(up)
        if isinstance(module.lora_variant.get(adapter_name), DoraLinearVariant):
            moved = module.get_base_layer().dequantize(torch.float32)
            moved += module.get_delta_weight(adapter_name).to(moved)
            magnitude = module.lora_magnitude_vector[adapter_name].weight
            magnitude.data.copy_(torch.linalg.vector_norm(moved, dim=1))
    return errors


def _loftq(
    module: Linear, adapter_name: str, name: str, given: Tensor, iterations: int
) -> tuple[tuple[dict[str, Tensor], Tensor, Tensor], tuple[float, float]]:
    """The best (stored tensors, A, B), and the errors before and after. The layer is as it was."""
    layer = module.get_base_layer()
    quantized = layer.dequantize(torch.float32)
    given = given.detach().to(quantized)
    # A Conv1D's is [K, N], which of a square one only its values tell.
    turned = given.t() if given.ndim == 2 else given
    fitting = [w for w in (given, turned) if w.shape == quantized.shape]
    if not fitting:
        raise ValueError(
            f"loftq_: the float weight of {name} has shape {list(given.shape)}, "
            f"expected {list(quantized.shape)}"
        )
    weight = min(fitting, key=lambda w: _relative(w - quantized, w))
    before = _relative(weight - quantized, weight)
    if not before <= 0.5:
        raise ValueError(
            f"loftq_: the float weight of {name} is {before:.0%} away from the quantized one, "
            "expected the weight that was quantized"
        )
    original = _stored(layer)
    best: tuple[float, Any] = (float("inf"), None)
    try:
        low_rank = torch.zeros_like(weight)
        for iteration in range(iterations):
            if iteration:
                _quantize_into(layer, weight - low_rank)
                quantized = layer.dequantize(torch.float32)
            up, down = _decompose(weight - quantized, module.r[adapter_name])
            low_rank = up @ down
            after = _relative(weight - quantized - low_rank, weight)
            if after < best[0]:
                best = after, (_stored(layer), down, up / module.scaling[adapter_name])
    finally:
        _put_back(layer, original)
    return best[1], (before, best[0])


def _relative(error: Tensor, weight: Tensor) -> float:
    size = torch.linalg.vector_norm(weight).item()
    return torch.linalg.vector_norm(error).item() / size if size else 0.0


def _decompose(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """B [N, r] and A [r, K] with B A the best approximation of matrix, to a fraction of a percent.

    A full decomposition of a 4096 x 4096 weight takes minutes, and the spectrum of rounding errors
    is so flat that the directions next to the best are as good.
    """
    u, s, v = torch.svd_lowrank(matrix, q=min(2 * rank + 8, *matrix.shape), niter=4)
    root = s[:rank].sqrt()
    return u[:, :rank] * root, root[:, None] * v[:, :rank].t()


def _finder(weights: nn.Module | Mapping[str, Tensor] | str | Path) -> Callable[[str], Tensor]:
    """A function from the name of a layer to its float weight."""
    if isinstance(weights, nn.Module):

        def find(name: str) -> Tensor:
            try:
                weight = float_weight(weights.get_submodule(name))
            except AttributeError:
                weight = None
            if weight is None:
                raise ValueError(f"loftq_: weights has no plain linear layer {name}")
            return weight

        return find

    if isinstance(weights, Mapping):
        keys, read = tuple(weights), weights.__getitem__
    else:
        keys, read = _safetensors(Path(weights))

    def find_key(name: str) -> Tensor:
        wanted = f"{name}.weight"
        found = [key for key in keys if key == wanted] or [
            key for key in keys if key.endswith(f".{wanted}") or wanted.endswith(f".{key}")
        ]
        if len(found) != 1:
            raise ValueError(f"loftq_: weights has {len(found)} entries for {wanted}, expected one")
        return read(found[0])

    return find_key


def _safetensors(path: Path) -> tuple[tuple[str, ...], Callable[[str], Tensor]]:
    from safetensors import safe_open

    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    if not files or not files[0].is_file():
        raise ValueError(
            f"loftq_: weights is {path}, expected a safetensors file or a folder of them"
        )
    where = {}
    for file in files:
        with safe_open(file, framework="pt") as tensors:
            where.update(dict.fromkeys(tensors.keys(), file))

    def read(key: str) -> Tensor:
        with safe_open(where[key], framework="pt") as tensors:
            return tensors.get_tensor(key)

    return tuple(where), read


def _check_here(layer: LowbitLinear) -> None:
    if layer.weight.is_meta:
        raise ValueError(
            f"the weight of this {type(layer).__name__} is offloaded; use merge_adapter, "
            "unmerge_adapter and merge_and_unload of the model, which fetch it"
        )


def _stored(layer: LowbitLinear) -> dict[str, Tensor]:
    return {name: p.data for name, p in layer.named_parameters(recurse=False)}


def _quantize_into(layer: LowbitLinear, weight: Tensor) -> None:
    """Makes float weight [N, K] the layer's W. ValueError, with the layer unchanged."""
    problem = layer.why_not_quantizable(weight)
    if problem:
        raise ValueError(f"{type(layer).__name__}: the weight to be quantized {problem}")
    _put_back(layer, layer.quantize_weight(weight))


def _put_back(layer: LowbitLinear, stored: dict[str, Tensor]) -> None:
    for name, value in stored.items():
        own = getattr(layer, name)
        own.data = value.to(own)  # the model may have been moved since


def _check(config: Any, target: nn.Module, parameter_name: str | None) -> None:
    """Raises for what would read the codes of a module as a weight."""
    layer = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
    if not isinstance(layer, LowbitModule):
        return
    kind = type(layer).__name__
    if parameter_name in layer.stored():
        raise ValueError(
            f"the adapter targets the parameter {parameter_name} of a {kind}, which holds codes, "
            "not a float weight; name linear layers in target_modules (all-linear includes the "
            "experts of some models), or call model.dequantize() first"
        )
    if config.peft_type != PeftType.LORA:
        raise ValueError(
            f"{type(config).__name__} adapts the float weight of a layer, and a {kind} has codes; "
            "use LoraConfig, or call model.dequantize() first"
        )
    init = config.init_lora_weights
    if init == "loftq":
        raise ValueError(
            f'init_lora_weights="loftq" needs the float weight, and a {kind} has only codes; use '
            "init_lora_weights=True and call lowbit.integrations.peft.loftq_(model, float_weights)"
        )
    if isinstance(init, str) and not (init.lower() in _INITS or init.startswith("pissa")):
        raise ValueError(
            f'init_lora_weights="{init}" reads the float weight of a layer, and a {kind} has '
            f"codes; expected True, False, pissa, or one of {', '.join(_INITS)}"
        )
    for field in fields(config):
        name = field.name
        asked = field.metadata.get("is_lora_variant") and getattr(config, name)
        if asked and name not in _VARIANTS:
            raise ValueError(
                f"the LoRA variant {name} is not supported on a {kind}; "
                "call model.dequantize() first"
            )
    # PEFT's own hook for new kinds of layers; before what the user has registered for nn.Linear.
    config._custom_modules = {LowbitLinear: Linear} | (config._custom_modules or {})


def _checked(create: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(create)
    def run(
        self: BaseTuner, config: Any, adapter_name: str, target: nn.Module, *args: Any, **kw: Any
    ) -> None:
        _check(config, target, kw.get("parameter_name"))
        create(self, config, adapter_name, target, *args, **kw)

    return run


def _check_whole_modules(config: Any, model: nn.Module) -> None:
    """Raises for codes in a module that is to be trained itself, not by an adapter."""
    tokens = getattr(config, "trainable_token_indices", None)
    names = {
        "modules_to_save": getattr(config, "modules_to_save", None) or (),
        "trainable_token_indices": tokens if isinstance(tokens, dict) else (),
    }
    for key, module in model.named_modules():
        for option, endings in names.items():
            if not key.endswith(tuple(endings)):
                continue
            inner = next((m for m in module.modules() if isinstance(m, LowbitModule)), None)
            if inner is not None:
                raise ValueError(
                    f"{option} names {key}, where there is a {type(inner).__name__}: codes cannot "
                    "be trained; leave the layer out when you quantize, or call model.dequantize()"
                )


def _checked_injection(inject: Callable[..., None]) -> Callable[..., None]:
    @functools.wraps(inject)
    def run(self: BaseTuner, model: nn.Module, adapter_name: str, *args: Any, **kw: Any) -> None:
        _check_whole_modules(self.peft_config[adapter_name], model)
        modules = dict(model.named_modules())
        try:
            inject(self, model, adapter_name, *args, **kw)
        except ValueError:  # of _check, perhaps after float layers were wrapped
            for name, module in modules.items():
                if name and model.get_submodule(name) is not module:
                    model.set_submodule(name, module)
            raise

    return run


def _tuners(base: type) -> set[type]:
    return {base}.union(*(_tuners(tuner) for tuner in base.__subclasses__()))


BaseTuner.inject_adapter = _checked_injection(BaseTuner.inject_adapter)
for _tuner in _tuners(BaseTuner):
    if "_create_and_replace" in vars(_tuner):
        _tuner._create_and_replace = _checked(_tuner._create_and_replace)
