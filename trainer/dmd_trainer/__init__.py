"""Distribution Matching Distillation: teachers, losses, training, evaluation, registry."""
