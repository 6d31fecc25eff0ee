"""Int8 stores of quantized networks for deployment: every bit-width from one file, with numpy and without torch.

    store = mbq_store.open("model.safetensors")
    weight = store.dequantize("layer1.conv", 4)     # float32, what the network computed with at 4 bits
    packed = store.packed("layer1.conv", 4)         # two codes a byte
    mbq_store.switch("model.safetensors", 4, "model-4bit.safetensors")

The file format is defined in mbq_store.format.
"""

from .errors import StoreError
from .format import Layer
from .inspection import inspect
from .store import Store, open
from .switching import switch
from .writing import BFloat16, LayerData, to_bfloat16, write

__version__ = "0.1.0"
__all__ = ["BFloat16", "Layer", "LayerData", "Store", "StoreError", "inspect", "open", "switch", "to_bfloat16", "write"]
