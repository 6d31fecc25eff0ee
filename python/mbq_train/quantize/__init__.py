"""Quantizers, the layers that use them, and the bit-width they compute at."""
