"""Programs for tests, most of them the test cluster's: built once from their published Go modules, kept by version."""

import hashlib
import json
import os
import shutil
import subprocess
import sysconfig
from collections.abc import Mapping
from pathlib import Path

from filelock import FileLock

HERE = Path(__file__).parent
CACHE = Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")).expanduser() / "dmd-operator"

KUBERNETES = "1.37.2"
_STAMP = "k8s.io/component-base/version"
# What these programs say of themselves, and what the API server derives its own compatibility from.
_KUBERNETES_FLAGS = f"-s -w -X {_STAMP}.gitVersion=v{KUBERNETES} -X {_STAMP}.gitMajor=1 -X {_STAMP}.gitMinor=37"
# Program: the folder of its Go module, its package, its linker's flags.
_PROGRAMS = {
    "etcd": ("kubernetes", "go.etcd.io/etcd/server/v3", "-s -w"),
    **{
        name: ("kubernetes", f"k8s.io/kubernetes/cmd/{name}", _KUBERNETES_FLAGS)
        for name in ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy")
    },
    **{
        name: ("containerd", f"github.com/containerd/containerd/v2/cmd/{name}", "-s -w")
        for name in ("containerd", "containerd-shim-runc-v2", "ctr")
    },
    "coredns": ("coredns", "github.com/coredns/coredns", "-s -w"),
    "kwok": ("kwok", "sigs.k8s.io/kwok/cmd/kwok", "-s -w"),
    "pause": ("pause", ".", "-s -w"),
    "registry": ("registry", "github.com/google/go-containerregistry/cmd/registry", "-s -w"),
    "actionlint": ("actionlint", "github.com/rhysd/actionlint/cmd/actionlint", "-s -w"),
}
_GO_ENVIRONMENT = os.environ | {"CGO_ENABLED": "0", "GOWORK": "off"}
CONTROL_PLANE = ("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
"""What needs neither root nor Linux."""
CLUSTER = tuple(name for name in _PROGRAMS if name not in ("kwok", "registry", "actionlint"))
"""What a cluster with real nodes is made of."""
CNI = Path("/usr/lib/cni")
"""Where Debian keeps the CNI plugins."""
# Debian package: the program that shows whether it is there.
_DEBIAN = {
    "buildah": "buildah",
    "debootstrap": "debootstrap",
    "iproute2": "ip",
    "nftables": "nft",
    "runc": "runc",
    "containernetworking-plugins": str(CNI / "ptp"),
}


def build(*names: str) -> dict[str, Path]:
    """The paths of these programs, each built first if this version of it is not in the cache."""
    return {name: _build(name) for name in names}


def module(folder: str, name: str) -> Path:
    """The files of the Go module `name`, at the version that the module in `folder` requires."""
    command = [_script("go"), "mod", "download", "-json", name]
    result = subprocess.run(command, cwd=HERE / folder, env=_GO_ENVIRONMENT, capture_output=True, check=True)
    return Path(json.loads(result.stdout)["Dir"])


def kubectl() -> Path:
    """The command that a user types, at the version that the tests pin."""
    return _script("kubectl")


def install_debian_packages(packages: Mapping[str, str] = _DEBIAN) -> None:
    """Installs Debian's packages, by default what nodes and images need, if something of it is missing.

    Args:
        packages: and the program of each that shows whether it is there; root is needed where one is not.
    """
    CACHE.mkdir(parents=True, exist_ok=True)
    with FileLock(CACHE / "debian.lock"):
        search = os.environ["PATH"] + ":/usr/sbin:/sbin"
        if all(shutil.which(program, path=search) for program in packages.values()):
            return
        for command in (
            ["update"],
            ["install", "--yes", "--no-install-recommends", *packages],
        ):
            subprocess.run(
                ["apt-get", "--quiet", *command], env=os.environ | {"DEBIAN_FRONTEND": "noninteractive"}, check=True
            )


def _build(name: str) -> Path:
    module, package, flags = _PROGRAMS[name]
    source = HERE / module
    key = hashlib.sha256(b"".join(part.read_bytes() for part in sorted(source.iterdir())) + flags.encode())
    program = CACHE / f"{module}-{key.hexdigest()[:12]}" / name
    program.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(program.with_suffix(".lock")):
        if not program.exists():
            partial = program.with_suffix(".partial")
            subprocess.run(
                [_script("go"), "build", "-trimpath", "-ldflags", flags, "-o", partial, package],
                cwd=source,
                env=_GO_ENVIRONMENT,
                check=True,
            )
            partial.rename(program)
    return program


def _script(name: str) -> Path:
    """A program of this virtual environment: the same everywhere, whatever else the machine has."""
    return Path(sysconfig.get_path("scripts")) / name
