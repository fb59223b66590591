"""What the networks are conditioned on: labels and prompts."""
