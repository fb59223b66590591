"""Storage for pairs, checkpoints, generators and reports: a folder or an S3 bucket, addressed by keys.

No reader ever sees half an object: files are renamed into place, and S3 shows an object when its upload is complete.
A key that is found in a storage is data, as all that is there: none leads out of it.
"""

import os
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from dmd_api import runtime
from dmd_api.errors import BadInputError, InfrastructureError
from dmd_api.parsing import parse_json
from dmd_api.paths import below
from dmd_api.uris import STORAGE_SCHEMES, parse_uri
from dmd_trainer.runtime.certificates import NOT_TRUSTED, is_untrusted
from dmd_trainer.runtime.sources import is_own

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

T = TypeVar("T")

CLAIMS = Path(runtime.CLAIMS)
OUTAGE_SECONDS = 300
"""How long a storage that does not answer is asked again before the stage gives up."""
MULTIPART_BYTES = 16 * 2**20
HEADER_LENGTH = 8
"""The bytes of the length that a safetensors file begins with."""
LONGEST_HEADER = 100_000_000
"""The longest that safetensors reads."""


class KeyNotFoundError(BadInputError):
    """There is nothing at a key."""


class Storage(ABC):
    """A place for objects. A key that leads elsewhere, or may, is a BadInputError.

    Args:
        uri: the place, without a trailing slash.
    """

    def __init__(self, uri: str) -> None:
        self.uri = uri.rstrip("/")

    def uri_of(self, key: str) -> str:
        """The object's full URI."""
        return f"{self.uri}/{key}"

    @abstractmethod
    def sub(self, prefix: str) -> "Storage":
        """The part of the storage below `prefix`."""

    @abstractmethod
    def read(self, key: str) -> bytes:
        """The object's content.

        Raises:
            KeyNotFoundError: there is none.
            InfrastructureError: the storage does not answer.
        """

    def read_json(self, key: str) -> dict[str, Any]:
        """The object's content, a JSON object.

        Raises:
            BadInputError: it is none; errors of `read` besides.
        """
        content = parse_json(self.read(key), self.uri_of(key))
        if not isinstance(content, dict):
            raise BadInputError(f"{self.uri_of(key)}: is no JSON object; remove it")
        return content

    @abstractmethod
    def read_start(self, key: str, length: int) -> tuple[bytes, int]:
        """An object's first bytes, at most `length`, and how many it has; errors as `read`."""

    def download_header(self, key: str, path: Path) -> None:
        """Makes a local file as long as an object, and as empty, but for the header that safetensors begin with."""
        start, size = self.read_start(key, HEADER_LENGTH)
        header = HEADER_LENGTH + int.from_bytes(start, "little")
        start, size = self.read_start(key, min(header, size, LONGEST_HEADER))
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            file.write(start)
            file.truncate(size)

    @abstractmethod
    def write(self, key: str, data: bytes) -> None:
        """Makes or replaces an object; readers see the old content or the new."""

    @abstractmethod
    def upload(self, path: Path, key: str) -> None:
        """Makes or replaces an object by a file's content."""

    @abstractmethod
    def download(self, key: str, path: Path) -> None:
        """Copies an object to a local file, whose folder is made; the file appears when it is whole."""

    @abstractmethod
    def list(self, prefix: str = "") -> list[str]:
        """All keys that begin with `prefix`, sorted."""

    @abstractmethod
    def exists(self, key: str) -> bool:
        """Whether there is an object at `key`."""

    @abstractmethod
    def delete(self, prefix: str) -> None:
        """Deletes all objects whose keys begin with `prefix`; none is no error."""


def open_storage(uri: str, *, endpoint_url: str | None = None) -> Storage:
    """The storage at a URI.

    Args:
        uri: file:///PATH, s3://BUCKET[/PREFIX] or pvc://CLAIM[/PATH].
        endpoint_url: an S3 server that is not Amazon's; else AWS_ENDPOINT_URL, as boto3 reads it.

    Raises:
        BadInputError: the URI's scheme is not one of these.
    """
    try:
        parsed = parse_uri(uri, STORAGE_SCHEMES)
    except ValueError as error:
        raise BadInputError(f"storage: {error}") from error
    if parsed.scheme == "s3":
        bucket, _, prefix = parsed.path.partition("/")
        return S3Storage(_s3_client(endpoint_url), bucket, prefix.strip("/"))
    root = CLAIMS if parsed.scheme == "pvc" else Path()
    return FileStorage((root / parsed.path).absolute())


class FileStorage(Storage):
    """A folder; keys are paths below it.

    Args:
        root: the folder; made when something is written.
        whole: the folder that links must not lead out of, where `root` is a part of it.
    """

    def __init__(self, root: Path, whole: Path | None = None) -> None:
        super().__init__(f"file://{root}")
        self.root, self._whole = root, whole or root

    def sub(self, prefix: str) -> "FileStorage":
        return FileStorage(self.root / prefix, self._whole)

    def read(self, key: str) -> bytes:
        path = self._path(key)
        return self._do(key, path.read_bytes)

    def read_start(self, key: str, length: int) -> tuple[bytes, int]:
        path = self._path(key)

        def read() -> tuple[bytes, int]:
            with path.open("rb") as file:
                return file.read(length), path.stat().st_size

        return self._do(key, read)

    def write(self, key: str, data: bytes) -> None:
        self._replace(self._path(key), lambda partial: partial.write_bytes(data))

    def upload(self, path: Path, key: str) -> None:
        self._replace(self._path(key), lambda partial: shutil.copyfile(path, partial))

    def download(self, key: str, path: Path) -> None:
        source = self._path(key)
        self._replace(path, lambda partial: self._do(key, lambda: shutil.copyfile(source, partial)))

    def list(self, prefix: str = "") -> list[str]:
        # Only the folder that the prefix names is walked.
        top = self.root / prefix.rpartition("/")[0]
        keys = (path.relative_to(self.root).as_posix() for path in top.rglob("*") if path.is_file())
        return sorted(key for key in keys if key.startswith(prefix) and not key.endswith(".partial"))

    def exists(self, key: str) -> bool:
        return self._path(key).is_file()

    def delete(self, prefix: str) -> None:
        for key in self.list(prefix):
            (self.root / key).unlink(missing_ok=True)
        folder = self.root / prefix
        if prefix.endswith("/") and folder.is_dir():
            shutil.rmtree(folder, ignore_errors=True)

    def _path(self, key: str) -> Path:
        path = below(self.root, key, self.uri)
        # Pipes and devices would be waited for, or be read without end.
        if not is_own(path, self._whole) or (os.path.exists(path) and not os.path.isfile(path)):
            raise BadInputError(f"{self.uri_of(key)}: is no regular file of the storage; remove it")
        return path

    def _replace(self, target: Path, fill: Callable[[Path], object]) -> None:
        """Fills a file beside `target`, flushes it to the disk, and renames it into place."""

        def replace() -> None:
            target.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=".partial")
            partial = Path(name)
            try:
                fill(partial)
                os.fsync(handle)
                partial.chmod(0o644)
                partial.replace(target)
            finally:
                os.close(handle)
                partial.unlink(missing_ok=True)

        self._do(str(target), replace)

    def _do(self, key: str, action: Callable[[], T]) -> T:
        try:
            return action()
        except FileNotFoundError as error:
            raise KeyNotFoundError(f"{self.uri_of(key)}: there is no such file") from error
        except PermissionError as error:
            raise BadInputError(f"{self.uri}: permission denied for {error.filename}; check who owns it") from error
        except OSError as error:
            raise InfrastructureError(f"{self.uri_of(key)}: {error.strerror or error}; is the disk full?") from error


class S3Storage(Storage):
    """A bucket on an S3 server, or the part of it below a prefix.

    Args:
        client: boto3's.
        bucket: the bucket's name.
        prefix: what all keys begin with, without slashes at its ends.
    """

    def __init__(self, client: "S3Client", bucket: str, prefix: str = "") -> None:
        super().__init__(f"s3://{bucket}/{prefix}" if prefix else f"s3://{bucket}")
        self._client, self._bucket, self._prefix = client, bucket, f"{prefix}/" if prefix else ""

    def sub(self, prefix: str) -> "S3Storage":
        return S3Storage(self._client, self._bucket, f"{self._prefix}{prefix}".strip("/"))

    def read(self, key: str) -> bytes:
        name = self._name(key)
        return self._do(key, lambda: self._client.get_object(Bucket=self._bucket, Key=name)["Body"].read())

    def read_start(self, key: str, length: int) -> tuple[bytes, int]:
        name = self._name(key)

        def read() -> tuple[bytes, int]:
            size = self._client.head_object(Bucket=self._bucket, Key=name)["ContentLength"]
            if not min(size, length):  # of nothing there is no range
                return b"", size
            found = self._client.get_object(Bucket=self._bucket, Key=name, Range=f"bytes=0-{length - 1}")
            return found["Body"].read(), size

        return self._do(key, read)

    def write(self, key: str, data: bytes) -> None:
        name = self._name(key)
        self._do(key, lambda: self._client.put_object(Bucket=self._bucket, Key=name, Body=data))

    def upload(self, path: Path, key: str) -> None:
        from boto3.s3.transfer import TransferConfig

        name = self._name(key)
        config = TransferConfig(multipart_threshold=MULTIPART_BYTES, multipart_chunksize=MULTIPART_BYTES)
        self._do(key, lambda: self._client.upload_file(str(path), self._bucket, name, Config=config))

    def download(self, key: str, path: Path) -> None:
        name = self._name(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        # boto3 writes beside the file and renames.
        self._do(key, lambda: self._client.download_file(self._bucket, name, str(path)))

    def list(self, prefix: str = "") -> list[str]:
        def keys() -> list[str]:
            pages = self._client.get_paginator("list_objects_v2").paginate(
                Bucket=self._bucket, Prefix=self._prefix + prefix
            )
            found = (o["Key"].removeprefix(self._prefix) for page in pages for o in page.get("Contents", []))
            # Consoles make a folder visible by an object whose name ends with a slash.
            return sorted(key for key in found if key and not key.endswith("/"))

        return self._do(prefix, keys)

    def exists(self, key: str) -> bool:
        try:
            name = self._name(key)
            self._do(key, lambda: self._client.head_object(Bucket=self._bucket, Key=name))
        except KeyNotFoundError:
            return False
        return True

    def delete(self, prefix: str) -> None:
        for key in self.list(prefix):
            self._do(key, lambda key=key: self._client.delete_object(Bucket=self._bucket, Key=self._prefix + key))  # type: ignore[misc]

    def _name(self, key: str) -> str:
        """The object's name in the bucket."""
        below(Path(), key, self.uri)
        return self._prefix + key

    def _do(self, key: str, action: Callable[[], T]) -> T:
        """Does it, again and again while the server is away (botocore's own retries last seconds only)."""
        import tenacity
        from boto3.exceptions import Boto3Error
        from botocore.exceptions import BotoCoreError, ClientError, NoCredentialsError, PartialCredentialsError

        def passing(error: BaseException) -> bool:
            if isinstance(error, NoCredentialsError | PartialCredentialsError) or is_untrusted(error):
                return False
            if isinstance(error, ClientError):
                status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
                return status >= 500 or status == 429
            # boto3 wraps what went wrong in an upload; its cause says whether it will pass.
            if isinstance(error, Boto3Error):
                return error.__context__ is None or passing(error.__context__)
            return isinstance(error, BotoCoreError)

        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception(passing),
            wait=tenacity.wait_random_exponential(multiplier=0.5, max=15),
            stop=tenacity.stop_after_delay(OUTAGE_SECONDS),
            reraise=True,
        )
        try:
            return retrying(action)
        except (ClientError, BotoCoreError, Boto3Error) as error:
            raise self._translate(key, error) from error

    def _translate(self, key: str, error: Exception) -> Exception:
        from botocore.exceptions import ClientError, NoCredentialsError, PartialCredentialsError

        cause = error if isinstance(error, ClientError) or error.__context__ is None else error.__context__
        uri = self.uri_of(key)
        if isinstance(cause, NoCredentialsError | PartialCredentialsError):
            return BadInputError(
                f"{uri}: no credentials; give spec.storage.credentialsSecretRef (locally: AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY)"
            )
        if is_untrusted(cause):
            return BadInputError(f"{uri}: {NOT_TRUSTED}")
        if isinstance(cause, ClientError):
            code = str(cause.response.get("Error", {}).get("Code", ""))
            if code in {"NoSuchKey", "404", "NotFound"}:
                return KeyNotFoundError(f"{uri}: there is no such object")
            if code == "NoSuchBucket":
                return BadInputError(f"{uri}: there is no bucket {self._bucket}; make it, or correct spec.storage.uri")
            status = cause.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
            if status in {401, 403}:
                return BadInputError(
                    f"{uri}: access denied ({code}); check the credentials and the bucket's policy for this prefix"
                )
            if 400 <= status < 500:
                return BadInputError(f"{uri}: the server refused it ({code})")
        return InfrastructureError(f"{uri}: the storage does not answer ({type(cause).__name__}); is it up?")


def _s3_client(endpoint_url: str | None) -> "S3Client":
    import boto3
    from botocore.config import Config

    config = Config(
        retries={"mode": "standard", "max_attempts": 3},
        connect_timeout=10,
        read_timeout=60,
        # Servers that are not Amazon's have no DNS name a bucket, and not all of them know the newer checksums.
        s3={"addressing_style": "path" if endpoint_url or os.environ.get("AWS_ENDPOINT_URL") else "auto"},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    client: S3Client = boto3.session.Session().client(
        "s3", endpoint_url=endpoint_url, config=config, region_name=os.environ.get("AWS_REGION", "us-east-1")
    )
    return client
