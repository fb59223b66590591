"""Scheduler configurations that people have, and fields of configurations that are refused."""

from itertools import cycle
from typing import Any

STEPS = 1000
SD_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
ZERO_SNR = {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"}
UNCLIPPED = {"clip_sample": False}

Configuration = tuple[str, dict[str, Any]]
"""The class of a scheduler without its last word, and the fields that are given."""


def _each(name: str, field: str, *values: Any, **more: Any) -> list[Configuration]:
    return [(name, {field: value, **more}) for value in values]


# Values that are a class's default are had by every entry that does not name the field.
VARIANCE_PRESERVING: list[Configuration] = [
    ("DDIM", UNCLIPPED),
    *_each("DDIM", "beta_schedule", "scaled_linear", "squaredcos_cap_v2", **UNCLIPPED),
    *_each("DDIM", "prediction_type", "v_prediction", "sample", **UNCLIPPED),
    *_each("DDIM", "timestep_spacing", "trailing", "linspace", **UNCLIPPED),
    ("DDIM", {"steps_offset": 1, "set_alpha_to_one": False, **UNCLIPPED}),
    ("DDIM", {"trained_betas": [0.0001 + 0.02 * i / STEPS for i in range(STEPS)], **UNCLIPPED}),
    ("DDIM", {"num_train_timesteps": 500, **UNCLIPPED}),
    ("DDIM", {**ZERO_SNR, **UNCLIPPED}),
    *_each("DDPM", "variance_type", "fixed_small_log", "fixed_large", "fixed_large_log", **UNCLIPPED),
    ("DDPM", {"beta_schedule": "sigmoid", **UNCLIPPED}),
    ("PNDM", {}),
    *_each("PNDM", "timestep_spacing", "trailing", "linspace", skip_prk_steps=True),
    ("PNDM", {"prediction_type": "v_prediction", "steps_offset": 1, "set_alpha_to_one": True}),
    ("PNDM", {"prediction_type": "sample"}),
    *_each("EulerDiscrete", "timestep_spacing", "linspace", "leading", "trailing"),
    *[("EulerDiscrete", {f"use_{kind}_sigmas": True}) for kind in ("karras", "exponential", "beta")],
    ("EulerDiscrete", {"interpolation_type": "log_linear", "final_sigmas_type": "sigma_min"}),
    ("EulerDiscrete", {"prediction_type": "v_prediction", "sigma_min": 0.03, "sigma_max": 14.0}),
    ("EulerDiscrete", ZERO_SNR),
    # SDXL's own file: fields of other classes too.
    ("EulerDiscrete", {"timestep_spacing": "leading", "steps_offset": 1, "set_alpha_to_one": False, **UNCLIPPED}),
    *_each("EulerAncestralDiscrete", "timestep_spacing", "linspace", "leading", "trailing"),
    *_each("HeunDiscrete", "use_karras_sigmas", False, True),
    ("HeunDiscrete", {"beta_schedule": "exp"}),
    ("KDPM2Discrete", {"use_karras_sigmas": True}),
    ("KDPM2AncestralDiscrete", {}),
    ("LMSDiscrete", {}),
    *_each("DPMSolverMultistep", "solver_order", 1, 2, 3),
    *_each("DPMSolverMultistep", "algorithm_type", "dpmsolver", "sde-dpmsolver", final_sigmas_type="sigma_min"),
    ("DPMSolverMultistep", {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun"}),
    ("DPMSolverMultistep", {"final_sigmas_type": "sigma_min", "lower_order_final": False}),
    *_each("DPMSolverMultistep", "timestep_spacing", "leading", "trailing"),
    *[("DPMSolverMultistep", {f"use_{kind}_sigmas": True}) for kind in ("karras", "exponential", "beta")],
    ("DPMSolverMultistep", {"use_lu_lambdas": True}),
    ("DPMSolverMultistep", {"euler_at_final": True}),
    ("DPMSolverMultistep", {"lambda_min_clipped": -5.1, **ZERO_SNR, "beta_schedule": "squaredcos_cap_v2"}),
    ("DPMSolverMultistep", ZERO_SNR),
    ("DPMSolverSinglestep", {"use_karras_sigmas": True}),
    ("UniPCMultistep", {"solver_order": 1}),
    ("UniPCMultistep", {"solver_type": "bh1", "solver_order": 3}),
    ("UniPCMultistep", {"predict_x0": False, "use_karras_sigmas": True}),
    ("UniPCMultistep", {"disable_corrector": [0, 1], **ZERO_SNR}),
    *_each("DEISMultistep", "solver_order", 2, 3),
    ("SASolver", {}),
    ("LCM", {}),
    ("TCD", {"original_inference_steps": 20}),
]
CLIPPING: list[Configuration] = [
    ("DDIM", {}),
    ("DDIM", {"clip_sample_range": 2.0}),
    ("DDIM", {"thresholding": True, "sample_max_value": 1.5, "dynamic_thresholding_ratio": 0.9}),
    ("DDPM", {}),
    ("DPMSolverMultistep", {"thresholding": True}),
]
"""Of pixels alone."""
FLOW: list[Configuration] = [
    *_each("FlowMatchEulerDiscrete", "shift", 1.0, 3.0),
    ("FlowMatchEulerDiscrete", {"use_dynamic_shifting": True}),
    ("FlowMatchEulerDiscrete", {"use_dynamic_shifting": True, "time_shift_type": "linear", "base_shift": 0.7}),
    ("FlowMatchEulerDiscrete", {"shift_terminal": 0.1}),
    *[("FlowMatchEulerDiscrete", {f"use_{kind}_sigmas": True}) for kind in ("karras", "exponential", "beta")],
    ("FlowMatchEulerDiscrete", {"stochastic_sampling": True}),
    ("FlowMatchEulerDiscrete", {"num_train_timesteps": 500}),
    ("FlowMatchHeunDiscrete", {"shift": 2.0}),
    ("FlowMatchLCM", {"shift": 2.0}),
]
EDM: list[Configuration] = [
    ("EDMEuler", {}),
    ("EDMEuler", {"sigma_data": 1.0, "sigma_min": 0.01, "sigma_max": 60.0, "rho": 5.0}),
    ("EDMDPMSolverMultistep", {"solver_order": 3, "sigma_data": 0.7}),
    ("CMStochasticIterative", {"sigma_data": 0.6}),
]
REFUSED: list[Configuration] = [
    *_each("DPMSolverMultistep", "algorithm_type", "dpmsolver"),  # whose last sigma may not be 0
    *_each("DPMSolverMultistep", "variance_type", "learned", "learned_range"),
    *_each("DPMSolverMultistep", "use_flow_sigmas", True),
    *_each("DPMSolverMultistep", "prediction_type", "flow_prediction"),
    *_each("DDPM", "variance_type", "learned_range", **UNCLIPPED),
    *_each("UniPCMultistep", "use_flow_sigmas", True),
    *_each("EulerDiscrete", "timestep_type", "continuous"),
    *_each("EulerDiscrete", "beta_schedule", "squaredsine"),
    *_each("EulerDiscrete", "prediction_type", "original_sample"),
    *_each("DDIM", "rescale_betas_zero_snr", True, **UNCLIPPED),  # a network of noise: nothing is seen without signal
    *_each("FlowMatchEulerDiscrete", "invert_sigmas", True),
    *_each("FlowMatchLCM", "scale_factors", [0.5, 1.0]),
    *_each("EDMEuler", "sigma_schedule", "exponential"),
    *_each("EDMEuler", "prediction_type", "v_prediction"),
    *_each("EDMDPMSolverMultistep", "thresholding", True),
    *_each("ScoreSdeVe", "snr", 0.2),
    *_each("DDIMInverse", "clip_sample", False),
]
"""Each is refused by the name or the value of its first field, or by its class where all of it is unknown."""

BY_FAMILY = {
    "sd": VARIANCE_PRESERVING,
    "sdxl": VARIANCE_PRESERVING,
    "ddpm": VARIANCE_PRESERVING + CLIPPING,
    "sd3": FLOW,
    "edm": EDM,
}


def name_of(configuration: Configuration) -> str:
    """The configuration in a test's name."""
    name, fields = configuration
    return "-".join([name, *(f"{key}={str(value)[:12]}" for key, value in fields.items())])


def product() -> list[tuple[str, Configuration]]:
    """Every family with every configuration of its kind."""
    return [(family, found) for family, configurations in BY_FAMILY.items() for found in configurations]


def each_once() -> list[tuple[str, Configuration]]:
    """Every configuration once, of families in turn."""
    in_turn = zip(cycle(("sd", "sdxl", "ddpm")), VARIANCE_PRESERVING, strict=False)
    alone = (("ddpm", CLIPPING), ("sd3", FLOW), ("edm", EDM))
    return [*in_turn, *((family, found) for family, configurations in alone for found in configurations)]
