"""MSQ: a bit disappears from a layer when its last users are gone (Han et al., 2025, arXiv 2507.22349)."""

from .msq import Msq

__all__ = ["Msq"]
