"""Runs a distillation on this machine."""
