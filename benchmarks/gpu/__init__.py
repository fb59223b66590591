"""Whether everything that needs a GPU works on one: `make gpu-check`."""
