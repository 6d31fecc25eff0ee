"""A bit-width of its own for a quantizer, whatever that of its model."""

import torch

from .bits import BitState
from .flags import Watching, one_of_all


class OwnBits(Watching):
    """Compute at the bit-width of the model, or at one's own: `fixed_bits` from construction on, or what `set_own_bits`
    gave last, which the state_dict holds as the buffer `layer_bits`, 0 for none.

    Args:
        bit_state: the model's.
        layer_name: what error messages call the layer.
        fixed_bits: 1..8, for good; None: the others decide.
    """

    _watched = {"layer_bits": "_read_own_bits"}

    def __init__(self, bit_state: BitState, *, layer_name: str, fixed_bits: int | None = None):
        super().__init__()
        self.bit_state, self.layer_name, self.fixed_bits = bit_state, layer_name, fixed_bits
        # Floating point, because averages of models average their buffers too.
        self.register_buffer("layer_bits", torch.zeros(()))
        self.keep_own_bits(0)
        self.register_load_state_dict_pre_hook(_read_earlier_versions)

    def __setstate__(self, state):
        super().__setstate__(state)
        self.keep_own_bits(self._layer_bits)  # a copy of the BitState knows none of its parts

    @property
    def own_bits(self) -> int | None:
        """Return the bit-width of its own, None where the model's is in use."""
        self.look()
        return self.fixed_bits or self._layer_bits or None

    @property
    def bits(self) -> int:
        """Return the bit-width to compute at, unless the model is in float: its own, or the model's."""
        return self.own_bits or self.bit_state.bits

    @property
    def index(self) -> int:
        """Return the position of `bits` among those that are trained."""
        return self._layer_index if self._layer_bits else self.bit_state.index

    def bits_at(self, bits: int) -> int:
        """Return the bit-width to compute at where the model is at `bits`."""
        return self.own_bits or bits

    def set_own_bits(self, bits: int | None) -> None:
        """Compute at `bits` bits from now on, whatever the model's bit-width; at 32 stay in float. None: at the
        model's again. Without a synchronisation of the device."""
        self.bit_state.changed |= bool(bits or self._layer_bits)
        self.layer_bits.fill_(bits or 0)
        self.keep_own_bits(bits or 0)
        self.saw("layer_bits")

    def check_own_bits(self, bits: int) -> None:
        """Raise ValueError unless `set_own_bits` can take `bits`: one of those that are trained."""
        if bits not in self.bit_state.trained:
            raise ValueError(f"set_layer_bits: bits of {self.layer_name} must be one of "
                             f"{', '.join(map(str, self.bit_state.trained))}, which are trained, got {bits}")

    def update_state(self, state: dict, prefix: str, layer_bits: torch.Tensor) -> None:
        """Make of a state of an earlier version one of this version, in place; most had no `layer_bits`."""
        state.setdefault(f"{prefix}layer_bits", layer_bits)

    def keep_own_bits(self, bits: int) -> None:
        """Compute at `bits` bits, 0 for the model's, without a word of it in `layer_bits`."""
        trained = self.bit_state.trained
        if bits:
            self.bit_state.own[self] = bits
        else:
            self.bit_state.own.pop(self, None)
        self._layer_bits, self._layer_index = bits, trained.index(bits) if bits in trained else 0

    def _read_own_bits(self) -> None:
        bits, = one_of_all(self.layer_name, self.layer_bits.reshape(1))
        if not bits.is_integer():
            raise RuntimeError(f"{self.layer_name}: layer_bits must be an integer, got {bits:g}, as of an average over "
                               "a training that changed it")
        if bits:
            try:
                self.check_own_bits(int(bits))
            except ValueError as error:
                raise RuntimeError(f"{self.layer_name}: layer_bits must be what set_layer_bits can give, got "
                                   f"{bits:g} ({error})") from error
        self.keep_own_bits(int(bits))


def _read_earlier_versions(module: OwnBits, state_dict, prefix: str, *others) -> None:
    module.update_state(state_dict, prefix, module.layer_bits.clone())
