"""Distribution Matching Distillation: its losses, its networks and its step."""
