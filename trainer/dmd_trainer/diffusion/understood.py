"""The fields of schedulers' configurations that are understood: any other is refused by name, not ignored."""

import inspect
from collections.abc import Mapping
from typing import Any

import diffusers

from dmd_api.errors import BadInputError

FILE = "scheduler/scheduler_config.json"

VARIANCE_PRESERVING = (
    "DDPMScheduler",
    "DDPMParallelScheduler",
    "DDIMScheduler",
    "DDIMParallelScheduler",
    "PNDMScheduler",
    "LMSDiscreteScheduler",
    "EulerDiscreteScheduler",
    "EulerAncestralDiscreteScheduler",
    "HeunDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "DPMSolverSinglestepScheduler",
    "DPMSolverMultistepScheduler",
    "UniPCMultistepScheduler",
    "DEISMultistepScheduler",
    "SASolverScheduler",
    "LCMScheduler",
    "TCDScheduler",
)
"""The classes of variance-preserving schedules, which have the same betas and say the same time to the network."""
EDM = ("EDMEulerScheduler", "EDMDPMSolverMultistepScheduler", "CMStochasticIterativeScheduler")
"""The classes of EDM's schedules."""
FLOW = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler", "FlowMatchLCMScheduler")
"""The classes of flow-matching schedules."""

TABLE = (
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "rescale_betas_zero_snr",
    "prediction_type",
)
"""The fields that make a variance-preserving schedule; whatever samples a teacher has to read all of them."""

# Fields of a class's own sampler: whatever solver is made from the configuration takes those that it knows.
_SPACING = ("timestep_spacing", "steps_offset", "interpolation_type", "sigma_min", "sigma_max", "lambda_min_clipped")
_SIGMAS = ("use_karras_sigmas", "use_exponential_sigmas", "use_beta_sigmas")
_STEPPING = ("solver_order", "solver_type", "algorithm_type", "lower_order_final", "euler_at_final")
_ENDING = ("final_sigmas_type", "set_alpha_to_one", "skip_prk_steps", "use_lu_lambdas")
_UNIPC = ("predict_x0", "solver_p", "disable_corrector")
_SA_SOLVER = ("predictor_order", "corrector_order", "tau_func")
_LCM = ("original_inference_steps", "timestep_scaling")
_CLIPPING = ("clip_sample", "clip_sample_range", "thresholding", "dynamic_thresholding_ratio", "sample_max_value")
_OF_EDM = ("num_train_timesteps", "sigma_min", "sigma_max", "sigma_data", "rho", "prediction_type")
_EDM_SAMPLING = ("final_sigmas_type", "s_noise", "clip_denoised", "dynamic_thresholding_ratio", "sample_max_value")
_OF_FLOW = ("num_train_timesteps", "shift", "shift_terminal", "stochastic_sampling")
_DYNAMIC_SHIFT = ("use_dynamic_shifting", "time_shift_type", "base_shift", "max_shift")
_IMAGE_SIZES = ("base_image_seq_len", "max_image_seq_len")

_UNDERSTOOD = (
    dict.fromkeys(
        VARIANCE_PRESERVING,
        (*TABLE, *_SPACING, *_SIGMAS, *_STEPPING, *_ENDING, *_UNIPC, *_SA_SOLVER, *_LCM, *_CLIPPING, "variance_type"),
    )
    | dict.fromkeys(EDM, (*_OF_EDM, *_STEPPING, *_EDM_SAMPLING))
    | dict.fromkeys(FLOW, (*_OF_FLOW, *_SIGMAS, *_DYNAMIC_SHIFT, *_IMAGE_SIZES))
)
_UNDERSTOOD_VALUES = {
    # A network that learnt its variance has twice the channels, of which pipelines drop half.
    "variance_type": (None, "fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log"),
}


def check_understood(config: Mapping[str, Any], name: str | None = None) -> None:
    """Refuses what changes a scheduler's result in a way that is not known here.

    Fields at the class's own defaults, and those that the class does not know, change nothing.

    Args:
        config: the contents of `scheduler_config.json`.
        name: the class that is made from it; by default its own.

    Raises:
        BadInputError: the class, or the value of a field, is not understood.
    """
    name = name or str(config.get("_class_name"))
    for field, default in defaults(name).items():
        value = config.get(field, default)
        values = _UNDERSTOOD_VALUES.get(field)
        if value != default and (field not in _UNDERSTOOD[name] or (values is not None and value not in values)):
            raise BadInputError(
                f"{FILE}: {field} {value!r} of {name} is not supported; leave it at {default!r} if the teacher was "
                "trained so, or use another teacher"
            )


def defaults(name: str) -> dict[str, Any]:
    """The fields of a scheduler's class with the values that they have where a configuration names none.

    Raises:
        BadInputError: the class is of no family known here.
    """
    if name not in _UNDERSTOOD:
        raise BadInputError(
            f"{FILE}: the teacher's scheduler {name} is of no known family; known are the variance-preserving ones "
            "(DDPM, DDIM, PNDM, ...), EDM, CMStochasticIterative and FlowMatch"
        )
    parameters = inspect.signature(getattr(diffusers, name)).parameters
    return {field: parameter.default for field, parameter in parameters.items()}


def value_of(config: Mapping[str, Any], field: str) -> Any:
    """The value that a configuration's own class takes for a field; None where it knows no such field."""
    return config.get(field, defaults(str(config.get("_class_name"))).get(field))


def make_scheduler(config: Mapping[str, Any], name: str | None = None, **options: Any) -> Any:
    """The scheduler of a configuration, as a pipeline makes it.

    Args:
        config: the contents of `scheduler_config.json`.
        name: the class; by default its own.
        options: fields that are set otherwise.

    Raises:
        BadInputError: it is not understood, or diffusers itself refuses it.
    """
    check_understood(config, name)
    name = name or str(config["_class_name"])
    # Fields of other classes, which many published files carry, would only be warned of.
    known = {field: value for field, value in config.items() if field in defaults(name)}
    try:
        return getattr(diffusers, name).from_config(known, **options)
    # Whatever diffusers raises over values of a file: it knows no such beta schedule, or a number is a text.
    except (NotImplementedError, ValueError, TypeError, RuntimeError, ImportError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BadInputError(f"{FILE}: diffusers makes no {name} of it ({reason}); correct the file") from error
