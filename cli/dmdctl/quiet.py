"""Keeps what libraries say while they load models off the terminal, which shows the command's own words."""

import importlib.util
import os
import warnings

LIBRARIES = ("diffusers", "lpips", "peft", "torch", "torchvision", "transformers")


def quiet_warnings() -> None:
    """Turns off the warnings of the trainer's libraries, without importing any."""
    warnings.filterwarnings("ignore", module=rf"({'|'.join(LIBRARIES)})(\.|$)")
    for library in ("DIFFUSERS", "TRANSFORMERS"):
        os.environ[f"{library}_VERBOSITY"] = "error"


def quiet_libraries() -> None:
    """Turns off the warnings, bars and hints of the trainer's libraries in this process, where they are installed."""
    quiet_warnings()
    if importlib.util.find_spec("diffusers") is None:
        return
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for logging in (diffusers_logging, transformers_logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()
