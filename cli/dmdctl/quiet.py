"""Keeps what libraries say while they load and save models off the terminal, which shows the command's own words."""


def quiet_libraries() -> None:
    """Turns off the bars and hints of diffusers and transformers in this process."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    for logging in (diffusers_logging, transformers_logging):
        logging.set_verbosity_error()
        logging.disable_progress_bar()
