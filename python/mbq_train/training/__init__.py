"""What happens in one training step: gradients, optimizers, self-distillation, divergence."""
