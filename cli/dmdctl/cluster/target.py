"""The cluster and the namespace that a command was given: kubeconfig, context, namespace"""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Target:
    """A cluster and a namespace, as the options name them.

    Attributes:
        namespace: None: the context's.
        context: None: the kubeconfig's current one.
        kubeconfig: None: those that `KUBECONFIG` names, else ~/.kube/config, else the pod that this is.
    """

    namespace: str | None = None
    context: str | None = None
    kubeconfig: Path | None = None
