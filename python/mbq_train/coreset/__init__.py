"""Which training images matter: gradient norms of single samples, scores by bit-width, and what is drawn by them."""

from .grad_norm import GradNorms, GradNormScorer

__all__ = ["GradNormScorer", "GradNorms"]
