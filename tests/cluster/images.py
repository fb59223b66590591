"""Images without a registry: built by buildah into the cache, and kept there as archives that a node imports."""

import contextlib
import hashlib
import json
import os
import shutil
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from filelock import FileLock

from tests.cluster import binaries
from tests.cluster.node import PAUSE_IMAGE
from tests.cluster.processes import ClusterError, call

_STORE = binaries.CACHE / "images"
# Debian's release for a Python: pods run this machine's site-packages, whose compiled modules fit one minor version.
_RELEASES = {(3, 11): "bookworm", (3, 13): "trixie"}
_PACKAGES = "python3,python3-pip,python3-venv,ca-certificates,libgomp1,libexpat1"
_CERTIFICATES = Path("/etc/ssl/certs/ca-certificates.crt")
"""Where Debian's images look for them."""
_KEPT_SECONDS = 86400
_PIP_OPTIONS = ("index-url", "extra-index-url", "trusted-host", "timeout", "retries", "proxy")
"""What of this machine's pip settings holds inside a build too."""


def base_name() -> str:
    """What the image is called that has the Python of these tests, as `python` and `python3`, and pip."""
    return f"docker.io/local/base:{_release()}-{hashlib.sha256(_PACKAGES.encode()).hexdigest()[:8]}"


def base_image() -> str:
    """`base_name`, to build on; the image is made first if it is not in the cache."""
    name = base_name()
    if _known(name):
        return name
    with _lock():
        if not _known(name):
            with tempfile.TemporaryDirectory(dir=_STORE) as folder:
                _debootstrap(Path(folder), name)
    return name


def build(
    dockerfile: Path, context: Path, tag: str, build_args: Mapping[str, str] | None = None, target: str | None = None
) -> None:
    """Builds `tag` (in full: docker.io/local/NAME:TAG) into the store.

    Layers that did not change come from the cache. pip reaches its index as it does on this machine.
    """
    with _lock(), tempfile.TemporaryDirectory(dir=_STORE) as folder:
        options = ["--isolation=chroot", "--network=host", "--layers", "--format=docker"]
        options += [word for option in _mounts(Path(folder)) for word in ("--volume", option)]
        options += [word for name, value in (build_args or {}).items() for word in ("--build-arg", f"{name}={value}")]
        options += ["--target", target] if target else []
        earlier = _known(tag)
        buildah("bud", *options, "--tag", tag, "--file", str(dockerfile), str(context))
        _forget_layers(() if _known(tag) == earlier else (earlier,))


def build_image(
    dockerfile: Path, context: Path, tag: str, build_args: Mapping[str, str] | None = None, target: str | None = None
) -> Path:
    """`build`, and the image as an archive for `Cluster.load_image`."""
    build(dockerfile, context, tag, build_args, target)
    with _lock():
        return _archive(tag)


def base_archive() -> Path:
    """The image `base_name` as an archive for `Cluster.load_image`."""
    archive = _STORE / f"{base_name().rpartition('/')[2].replace(':', '-')}.tar"
    if not archive.exists():  # looked at without the lock, which a build may hold for minutes
        name = base_image()
        with _lock():
            _push(name, archive)
    return archive


def pause_archive() -> Path:
    """The image of the container that holds a pod's namespaces."""
    program = binaries.build("pause")["pause"]
    archive = program.with_suffix(".tar")
    if not archive.exists():
        with _lock(), tempfile.TemporaryDirectory(dir=_STORE) as folder:
            dockerfile = Path(folder) / "Dockerfile"
            dockerfile.write_text('FROM scratch\nCOPY pause /pause\nENTRYPOINT ["/pause"]\n')
            shutil.copy(program, folder)
            buildah("bud", "--tag", PAUSE_IMAGE, "--file", str(dockerfile), folder)
            _push(PAUSE_IMAGE, archive)
    return archive


def _release() -> str:
    release = _RELEASES.get(sys.version_info[:2])
    if release is None:
        known = ", ".join(f"{major}.{minor}" for major, minor in _RELEASES)
        raise ClusterError(f"no Debian release has Python {sys.version_info[0]}.{sys.version_info[1]}, only {known}")
    return release


def _debootstrap(folder: Path, name: str) -> None:
    root = folder / "root"
    call(["debootstrap", "--variant=minbase", f"--include={_PACKAGES}", _release(), root], timeout=900)
    # As in the images of Docker's library: pip installs for the whole image, and `python` is a program.
    for marker in root.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):
        marker.unlink()
    (root / "usr/local/bin/python").symlink_to("/usr/bin/python3")
    for package in root.glob("var/cache/apt/archives/*.deb"):
        package.unlink()
    dockerfile = folder / "Dockerfile"
    dockerfile.write_text('FROM scratch\nCOPY root /\nENV LANG=C.UTF-8\nCMD ["/bin/sh"]\n')
    buildah("bud", "--tag", name, "--file", str(dockerfile), str(folder))


def _lock() -> FileLock:
    _STORE.mkdir(parents=True, exist_ok=True)
    return FileLock(_STORE / "lock")


def buildah(*arguments: str) -> str:
    """What buildah says, working in the cache's own store."""
    # In a mount namespace of its own: its storage leaves mounts behind otherwise.
    storage = [f"--root={_STORE / 'store'}", f"--runroot={_STORE / 'run'}", "--storage-driver=overlay"]
    command = ["unshare", "--mount", "--propagation=private", "--", "buildah", *storage, *arguments]
    return call(command, timeout=1800)


def _known(name: str) -> str:
    """The id of an image in the store, or nothing."""
    known = json.loads(buildah("images", "--json") or "null") or []
    return next((image["id"] for image in known if name in (image["names"] or ())), "")


def _forget_layers(images: Iterable[str]) -> None:
    """Removes `images` and cached layers of more than a day ago, as far as no other image needs them."""
    listed = json.loads(buildah("images", "--all", "--json") or "null") or []
    yesterday = time.time() - _KEPT_SECONDS
    old = [image["id"] for image in listed if not image["names"] and image["created"] < yesterday]
    for image in filter(None, (*images, *old)):
        with contextlib.suppress(ClusterError):  # it is another's parent, or gone with another's
            buildah("rmi", image)


def _archive(name: str) -> Path:
    """The image as an archive that is named by its content; that of an earlier build is removed."""
    of_this_name = hashlib.sha256(name.encode()).hexdigest()[:8]
    archive = _STORE / f"{of_this_name}-{_known(name)[:16]}.tar"
    if not archive.exists():
        for earlier in _STORE.glob(f"{of_this_name}-*"):
            earlier.unlink()
        _push(name, archive)
    return archive


def _push(name: str, archive: Path) -> None:
    partial = archive.with_suffix(".partial")
    partial.unlink(missing_ok=True)
    buildah("push", "--quiet", name, f"docker-archive:{partial}:{name}")
    partial.rename(archive)


def _mounts(folder: Path) -> list[str]:
    """What a build needs of this machine, mounted for as long as it runs: no layer keeps it."""
    settings = ["[global]", "disable-pip-version-check = true", "root-user-action = ignore"]
    bundle = next((path for path in _bundles() if path.exists()), None)
    if bundle:
        settings.append(f"cert = {_CERTIFICATES}")
    listing = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=False
    )
    for line in listing.stdout.splitlines():
        name, _, value = line.partition("=")
        option = name.rpartition(".")[2]
        if option in _PIP_OPTIONS:
            settings.append(f"{option} = {value.strip(chr(39))}")
    configuration = folder / "pip.conf"
    configuration.write_text("\n".join(settings) + "\n")
    return [f"{configuration}:/etc/pip.conf:ro", *([f"{bundle}:{_CERTIFICATES}:ro"] if bundle else [])]


def _bundles() -> list[Path]:
    named = [os.environ.get(name) for name in ("PIP_CERT", "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE")]
    return [Path(name) for name in (*named, ssl.get_default_verify_paths().cafile) if name] + [_CERTIFICATES]
