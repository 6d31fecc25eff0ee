"""Which training images matter: gradient norms of single samples, scores by bit-width, and what is drawn by them."""

from .grad_norm import GradNorms, GradNormScorer
from .sampling import CoresetSampler, draw_rows
from .scores import score_images

__all__ = ["CoresetSampler", "GradNormScorer", "GradNorms", "draw_rows", "score_images"]
