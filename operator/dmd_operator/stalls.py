"""Progress, and attempts that hang: pods that all run, and a step that does not move."""

from datetime import timedelta

from dmd_api.stages import Stage
from dmd_api.status import RunStatus
from dmd_operator.observed import ObservedJob
from dmd_operator.run import Run


def with_progress(run: Run, job: ObservedJob) -> Run:
    """The run with what rank 0 of `job` shows, and with the time at which its step last moved."""
    status, progress = run.status, run.progress
    if not job.running:
        return run.update(last_progress_time=None)
    update: dict[str, object] = {}
    if status.last_progress_time is None or status.last_progress_time > run.now:  # by a clock that was ahead
        update["last_progress_time"] = run.now
    if progress is not None and job.shows(progress):
        activity = progress.activity or "at work"
        if (progress.step, activity) != (status.step, status.activity):
            update["last_progress_time"] = run.now
        if progress.step > (status.step or 0) and job.stage is not Stage.PREFLIGHT:
            update |= {"retries": 0, "disruptions": 0}  # what moves again has outlived the cause of its back-off
        share = f"{100 * progress.step // progress.total}%" if progress.total else None
        eta = _duration(progress.eta_seconds) if progress.eta_seconds is not None else None
        update |= {
            "activity": activity,
            "step": progress.step,
            "total": progress.total or None,
            "unit": progress.unit or None,
            "progress": share,
            "eta": eta,
            "losses": {name: short(loss) for name, loss in progress.losses.items()},
            "images_per_second": short(progress.images_per_second),
            "fid": short(progress.fid) if progress.fid is not None else status.fid,
            "best_fid": short(progress.best_fid) if progress.best_fid is not None else status.best_fid,
            "best_step": progress.best_step if progress.best_step is not None else status.best_step,
            "mlflow_run": progress.mlflow_run or status.mlflow_run,
            "mlflow_run_url": progress.mlflow_run_url or status.mlflow_run_url,
        }
        if progress.checkpoint_step is not None:
            update["checkpoint_step"] = progress.checkpoint_step
    return run.update(**update)


def until_stalled(run: Run) -> timedelta | None:
    """The time until the attempt counts as stalled, negative when it does.

    None while its pods do not all run, and where rank 0 has never answered: what cannot be seen is no stall, and what
    keeps the operator from seeing it (a network policy) would end every attempt.
    """
    if run.status.last_progress_time is None or not was_seen(run.status):
        return None
    return run.status.last_progress_time + run.settings.stall_timeout - run.now


def was_seen(status: RunStatus) -> bool:
    """True if rank 0 of the present attempt has ever shown its progress."""
    return status.activity is not None


def short(value: float | None) -> float | None:
    """Four significant digits: people read them in a column."""
    return None if value is None else float(f"{value:.4g}")


def _duration(seconds: float) -> str:
    """Writes a duration as kubectl does: 45s, 12m, 3h5m, 2d4h."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes == 0:
        return f"{rest}s"
    hours, minutes = divmod(minutes, 60)
    if hours == 0:
        return f"{minutes}m"
    days, hours = divmod(hours, 24)
    return f"{days}d{hours}h" if days else f"{hours}h{minutes}m"
