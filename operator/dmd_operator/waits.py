"""The reasons why an attempt's pods do not run yet, each with its remedy."""

from dataclasses import dataclass
from datetime import datetime, timedelta

from dmd_operator.observed import ObservedJob

WITHOUT_PODS = timedelta(seconds=30)
"""A Job that lacks pods for this long is not allowed to, or its controller is away."""
STARTING_FOR = timedelta(minutes=5)
"""A pod that has had a node for this long and whose trainer has not started is worth a warning."""
NOTED_AFTER = timedelta(seconds=10)
"""One that has had a node for this long is worth a word: a large image takes minutes, and nothing is wrong."""
REMEDIES = {
    "CreateContainerConfigError": "create the Secret or the key that it names: the pod then starts by itself",
    "ErrImagePull": "check spec.images.trainer, or the operator's default, and imagePullSecrets in the podTemplate",
    "InvalidImageName": "correct the image's name in a new DMDDistillation, or the operator's default",
    "Unschedulable": "free or add nodes, or ask for less in a new DMDDistillation",
    "SchedulingGated": "it waits for whoever set the gate",
}
REMEDIES |= {"ImagePullBackOff": REMEDIES["ErrImagePull"], "ErrImageNeverPull": REMEDIES["ErrImagePull"]}


@dataclass(frozen=True)
class Wait:
    """A reason to wait.

    Attributes:
        reason: a word in CamelCase, the scheduler's or the kubelet's own where there is one.
        message: whose, why, and what to do.
    """

    reason: str
    message: str


def wait_of(job: ObservedJob, now: datetime) -> Wait | None:
    """The reason why `job` waits; None where its pods run or are about to."""
    if job.suspended:
        return Wait("Queued", f"{job.name} is suspended until its queue admits it")
    made = len({pod.index for pod in job.pods})
    if made < max(job.completions, 1) and now - job.created >= WITHOUT_PODS:
        why = "a quota, a service account that does not exist, or the namespace's Pod Security level"
        count = f"{made} of {job.completions} pods" if made else "no pods"
        return Wait("NoPods", f"{job.name} has created {count}: {why}; `kubectl describe job {job.name}` says which")
    for pod in job.pods:
        if pod.waiting:
            reason = pod.waiting.partition(":")[0]
            remedy = f"; {REMEDIES[reason]}" if reason in REMEDIES else ""
            return Wait(reason, f"worker {pod.index}: {pod.waiting.rstrip()}{remedy}")
    for pod in job.pods:
        if pod.starting and pod.starting_since is not None and now - pod.starting_since >= STARTING_FOR:
            minutes = round(STARTING_FOR.total_seconds() / 60)
            why = (
                "a volume that cannot be mounted, a Secret or a ConfigMap that is not there, or a large image"
                if pod.starting == "ContainerCreating"
                else "an init container that takes its time, or waits for something"
            )
            message = f"worker {pod.index} has not started its trainer for {minutes} minutes ({pod.starting}): {why}"
            return Wait("StartingSlowly", f"{message}; `kubectl describe pod {pod.name}` says which")
    for pod in job.pods:
        if pod.starting and pod.starting_since is not None and now - pod.starting_since >= NOTED_AFTER:
            creating = pod.starting == "ContainerCreating"
            doing = "its image is being pulled, or its volumes are being mounted" if creating else pod.starting
            return Wait("ContainerCreating" if creating else "PodInitializing", f"worker {pod.index}: {doing}")
    return None
