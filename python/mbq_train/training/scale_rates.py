"""Adaptive learning rate scaling (ALRS): the rates of scales follow the bit-width in use and the size of gradients."""

from collections.abc import Callable

import torch
from torch import nn

from .._names import look_up
from ..quantize.bits import FLOAT, get_bits
from ..quantize.quantizer import quantizers
from ..quantize.scales import scales
from .optimizers import biases_and_norms

Rate = float | torch.Tensor


def eta(highest: int, bits: int) -> float:
    """Return eta_b: 10^(-D/2) for an even D = highest - bits, 5 * 10^(-(D+1)/2) for an odd one.

    {8, 6, 4, 2} bits have 1, 0.1, 0.01, 0.001; {4, 3, 2} have 1, 0.5, 0.1.

    Reference: Huang et al., 2025, arXiv 2502.01199, eq. 7.
    """
    distance = highest - bits
    return 10.0 ** (-distance // 2) if distance % 2 == 0 else 5 * 10.0 ** (-(distance + 1) // 2)


def _multiplicative(rate: Rate, eta_b: float, place: int, size: Rate) -> Rate:
    return rate * eta_b * (1 - size)


def _literal(rate: Rate, eta_b: float, place: int, size: Rate) -> Rate:
    less = rate - size
    return eta_b * (less.clamp(min=0) if isinstance(less, torch.Tensor) else max(0.0, less))


def _eta(rate: Rate, eta_b: float, place: int, size: Rate) -> Rate:
    return rate * eta_b


def _released(rate: Rate, eta_b: float, place: int, size: Rate) -> Rate:
    return rate * 0.1**place


MODES: dict[str, Callable[[Rate, float, int, Rate], Rate]] = {
    "multiplicative": _multiplicative, "literal": _literal, "eta": _eta, "released": _released}
_SIZED = ("multiplicative", "literal")  # modes that read the gradients


class ScaleRates:
    """Set the learning rates of scales in every step of `optimizer`, in anybody's loop.

    lr is the rate that the optimizer's group has, which a scheduler may change, b the bit-width in use at the step,
    and size = mean over quantizers of min(max |gradient of its scales|, 1):

        multiplicative  eta_b lr (1 - size)
        literal         eta_b max(0, lr - size), as printed: 0 where gradients are larger than the rate
        eta             eta_b lr
        released        lr 0.1^k at the k-th bit-width from the highest, of biases and norms too, as in the paper's code

    The rates hold within the step alone: before and after it a group has its own. Nothing else is to be called.

        optimizer = torch.optim.AdamW(parameter_groups(model, weight_decay=1e-4), lr=1e-3)
        ScaleRates(optimizer, model)
        scheduler = ...

    Scales that share a group of the optimizer with other parameters get groups of their own, with the same options;
    so build schedulers afterwards. Where gradients of several bit-widths are added before a step, a scale of one
    bit-width has that bit-width's rate, and one that serves several the rate of the bit-width in use.

    Args:
        optimizer: of torch.optim, over parameters of `model`; its rate may be a tensor, as CUDA graphs need it.
        model: what `convert` returned.
        mode: one of the above.

    On CUDA the modes that read gradients wait for the device once a step, unless the rate is a tensor.

    Raises: ValueError, for an unknown mode, and where the optimizer holds no scale of the model.

    Reference: Huang et al., "Nearly Lossless Adaptive Bit Switching", 2025, arXiv 2502.01199, eq. 6-7; `released`: its
    public code. eq. 6 as printed is `literal`, which is 0 for usual gradients: our choice is `multiplicative`.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, model: nn.Module, *, mode: str = "multiplicative"):
        self._rate = look_up("ScaleRates", MODES, mode, argument="mode")
        self.optimizer, self.model, self.mode = optimizer, model, mode
        trained = sorted({b for quantizer in quantizers(model) for b in quantizer.bit_state.trained}, reverse=True)
        self._places = {b: place for place, b in enumerate(trained)}
        self._groups = self._own_groups()  # (group, the bit-width that its scales serve alone or None)
        self._held: list[tuple[dict, Rate]] = []
        # Of sizes, of rates, of steps.
        device = self._groups[0][0]["params"][0].device
        self._sums = {b: torch.zeros(3, dtype=torch.float64, device=device) for b in trained}
        self.handles = (optimizer.register_step_pre_hook(self._before), optimizer.register_step_post_hook(self._after))

    def remove(self) -> None:
        """Leave the optimizer's rates alone from now on."""
        for handle in self.handles:
            handle.remove()

    def averages(self) -> dict[int, dict[str, float]]:
        """Return {bits: {"gradient": mean size of the gradients of scales, "rate": mean rate of scales}} of the steps
        since the last call. The size is NaN in the modes that do not read gradients."""
        sums = {b: of_bits.tolist() for b, of_bits in self._sums.items()}
        for of_bits in self._sums.values():
            of_bits.zero_()
        return {b: {"gradient": size / steps, "rate": rate / steps} for b, (size, rate, steps) in sums.items() if steps}

    def state_dict(self) -> dict[str, torch.Tensor]:
        """Return what `averages` would average, for a checkpoint: {bits: (3,) sums of sizes, of rates, of steps}."""
        return {str(b): sums.clone() for b, sums in self._sums.items()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        """Put back what `state_dict` gave."""
        for b, sums in self._sums.items():
            sums.copy_(state[str(b)])

    def _own_groups(self) -> list[tuple[dict, int | None]]:
        """Give scales groups of their own, by the bit-width they serve; return these groups."""
        serves = {id(scale): _serves(quantizer, int(b)) for quantizer in quantizers(self.model)
                  for learned in quantizer.learned() for b, scale in learned.items()}
        others = biases_and_norms(self.model) if self.mode == "released" else ()
        serves |= {id(parameter): None for parameter in others}
        found = []
        for group in list(self.optimizer.param_groups):
            owners = [serves.get(id(parameter), "others") for parameter in group["params"]]
            for owner in dict.fromkeys(owners):
                if owner == "others":
                    continue
                found.append((self._split(group, owners, owner), owner))
        held = {id(parameter) for group, _ in found for parameter in group["params"]}
        if not any(id(scale) in held for scale in scales(self.model)):
            raise ValueError("ScaleRates: optimizer must hold scales of the model's quantizers, got none")
        return found

    def _split(self, group: dict, owners: list, owner) -> dict:
        """Return a group of those parameters of `group` whose owner is `owner`: itself where that is all of them."""
        if all(each == owner for each in owners):
            return group
        mine = [p for p, each in zip(group["params"], owners, strict=True) if each == owner]
        group["params"] = [p for p in group["params"] if not any(p is each for each in mine)]
        owners[:] = [each for each in owners if each != owner]
        rate = group["lr"].clone() if isinstance(group["lr"], torch.Tensor) else group["lr"]
        self.optimizer.add_param_group({**group, "params": mine, "lr": rate})
        return self.optimizer.param_groups[-1]

    @torch.no_grad()
    def _before(self, optimizer, args, kwargs) -> None:
        self._after()  # of a step that raised
        in_use = get_bits(self.model)
        if in_use == FLOAT:
            return
        size = self._size() if self.mode in _SIZED else float("nan")
        number, shown = None, 0.0  # the size on the host; the rate of scales at the bit-width in use
        for group, serves in self._groups:
            bits = in_use if serves is None else serves
            rate, known = group["lr"], size
            self._held.append((group, rate.clone() if isinstance(rate, torch.Tensor) else rate))
            if not isinstance(rate, torch.Tensor):
                known = number = float(size) if number is None else number
            _set(group, self._rate(rate, eta(next(iter(self._places)), bits), self._places[bits], known))
            shown = group["lr"] if bits == in_use else shown
        for place, value in enumerate((size, shown, 1)):
            self._sums[in_use][place] += value

    @torch.no_grad()
    def _after(self, *_) -> None:
        for group, rate in self._held:
            _set(group, rate)
        self._held = []

    def _size(self) -> torch.Tensor:
        """Return mean over quantizers of min(max |gradient of the scale itself|, 1), a scalar on their device."""
        found = [(scale.grad, quantizer.scale_units[b]) for quantizer in quantizers(self.model) if quantizer.kept()
                 for b, scale in quantizer.scales.items() if scale.grad is not None]
        if not found:
            return torch.zeros((), device=self._groups[0][0]["params"][0].device)
        grads, units = map(list, zip(*found, strict=True))
        largest = torch._foreach_norm(torch._foreach_mul(grads, units), float("inf"))
        return torch.stack(largest).clamp(max=1).mean()


def _set(group: dict, rate: Rate) -> None:
    """Set the group's rate, in place where it is a tensor, which a captured graph reads."""
    if isinstance(group["lr"], torch.Tensor):
        group["lr"].copy_(rate)
    else:
        group["lr"] = rate


def _serves(quantizer, kept: int) -> int | None:
    """Return the bit-width that parameters kept under `kept` serve alone; None where several."""
    served = [b for b in quantizer.bit_state.trained if quantizer.kept_at(b) == kept]
    return served[0] if len(served) == 1 else None
