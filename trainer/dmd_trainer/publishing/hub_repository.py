"""The repository of the Hugging Face hub that a generator is published in."""

from collections.abc import Callable
from http import HTTPStatus
from pathlib import Path
from typing import TypeVar

from dmd_api.errors import BadInputError, DMDError, InfrastructureError, first_line
from dmd_api.spec import HubRepository
from dmd_trainer.runtime.certificates import NOT_TRUSTED, is_untrusted
from dmd_trainer.tracking.client import OUTAGE_SECONDS, PASSING_STATUSES, patient

T = TypeVar("T")

FIELD = "spec.publish.huggingFace"
_NO_OUTAGES = (ValueError, TypeError, LookupError, AttributeError, AssertionError)
"""Of the client: its HTTP library's errors have other names in each version, and all of these mean something else."""
CREDENTIALS = "spec.huggingFace.credentialsSecretRef (locally: HF_TOKEN)"


def open_repository(
    wanted: HubRepository, patience: float = 0.0, before_retry: Callable[[], None] = lambda: None
) -> None:
    """Makes the repository where there is none, and makes sure that it can be written to and who sees it.

    Args:
        wanted: the manifest's.
        patience: for how many seconds a hub that is away is asked again.
        before_retry: called before each wait for it; may raise to stop.

    Raises:
        BadInputError: there is no token, or none that may write to it; or others see it than are meant to.
        InfrastructureError: the hub does not answer.
    """
    from huggingface_hub import HfApi

    def is_private() -> bool:
        api = HfApi()
        api.create_repo(wanted.repo, private=wanted.private, exist_ok=True)
        api.auth_check(wanted.repo, write=True)
        return bool(api.model_info(wanted.repo).private)

    if _ask(wanted, is_private, patience, before_retry) != wanted.private:
        there = "public" if wanted.private else "private"
        raise BadInputError(
            f"{FIELD}.private: {wanted.repo} exists and is {there}; change that on the hub, set private to "
            f"{str(not wanted.private).lower()}, or choose another repository"
        )


def check_card(wanted: HubRepository, card: str) -> None:
    """Asks the hub whether it would take a model card, which it reads the fields of.

    Raises:
        BadInputError: it would not.
        InfrastructureError: the hub does not answer.
    """
    from huggingface_hub import ModelCard

    _ask(wanted, lambda: ModelCard(card).validate(), 0.0, lambda: None)


def upload(wanted: HubRepository, folder: Path, message: str, before_retry: Callable[[], None]) -> str:
    """Uploads a pipeline's folder in one commit; none is made where everything is there already.

    Files of other names that the repository has stay.

    Args:
        wanted: the manifest's.
        folder: the pipeline's.
        message: the commit's.
        before_retry: called before each wait for a hub that is away; may raise to stop.

    Returns:
        hf://OWNER/NAME@COMMIT.

    Raises:
        BadInputError: as `open_repository`, or the hub refuses what is uploaded.
        InfrastructureError: the hub does not answer for longer than the retries last.
    """
    from huggingface_hub import HfApi

    open_repository(wanted, OUTAGE_SECONDS, before_retry)  # who sees it may have changed since preflight

    def commit() -> str:
        return HfApi().upload_folder(repo_id=wanted.repo, folder_path=folder, commit_message=message).oid

    return f"hf://{wanted.repo}@{_ask(wanted, commit, OUTAGE_SECONDS, before_retry)}"


def _ask(wanted: HubRepository, action: Callable[[], T], patience: float, before_retry: Callable[[], None]) -> T:
    """The result of `action`; errors as `open_repository`."""
    from huggingface_hub.constants import HF_HUB_OFFLINE
    from huggingface_hub.errors import HfHubHTTPError

    def status(error: BaseException) -> int | None:
        return error.response.status_code if isinstance(error, HfHubHTTPError) else None

    def away(error: BaseException) -> bool:
        if HF_HUB_OFFLINE or is_untrusted(error) or isinstance(error, _NO_OUTAGES):
            return False
        code = status(error)
        return code is None or code >= HTTPStatus.INTERNAL_SERVER_ERROR or code in PASSING_STATUSES

    try:
        return patient(away, patience, before_retry)(action)
    except DMDError:  # what `before_retry` raises
        raise
    except Exception as error:  # of the client and its HTTP library, by whatever name they have in a version
        if HF_HUB_OFFLINE:
            raise BadInputError(f"{FIELD}: HF_HUB_OFFLINE keeps the hub from being asked; unset it") from error
        if is_untrusted(error):
            raise BadInputError(f"{FIELD}: the hub answers, but {NOT_TRUSTED}") from error
        if away(error):
            raise InfrastructureError(
                f"{FIELD}: the hub does not answer ({first_line(error)}); is there a network?"
            ) from error
        if status(error) in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN, HTTPStatus.NOT_FOUND):
            raise BadInputError(
                f"{FIELD}.repo: {wanted.repo} cannot be written to with this token, or there is none; give one "
                f"that can in {CREDENTIALS}"
            ) from error
        said = " ".join(str(error).split())[:300]  # of a card that it refuses, the cause is in the third line
        raise BadInputError(f"{FIELD}.repo: the hub refuses {wanted.repo}: {said}") from error
