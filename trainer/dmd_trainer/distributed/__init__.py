"""Several processes training one network: what they agree on, and how it is sharded."""
