"""Data sets on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from deftly.console import printable
from deftly.data.lerobot import require_lerobot
from deftly.errors import DeftlyError

VERSION = "v3.0"
"""Tag of LeRobot's format, by which its readers find a data set."""


def require_upload(repo: str) -> None:
    """Raise DeftlyError, one line, unless a repository's name is one, and a token is here: before the long work."""
    require_lerobot()
    from huggingface_hub import constants, get_token  # type: ignore[import-not-found]
    from huggingface_hub.utils import (  # type: ignore[import-not-found]
        HFValidationError,
        validate_repo_id,
    )

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise DeftlyError(f"--push-to-hub USER/NAME: {printable(error, 160)}") from None
    if "/" not in repo:
        raise DeftlyError(f"--push-to-hub USER/NAME: '{repo}' names no user")
    if constants.HF_HUB_OFFLINE:
        raise DeftlyError("--push-to-hub needs the network, and HF_HUB_OFFLINE is set: unset it")
    if not get_token():
        raise DeftlyError(
            "--push-to-hub needs a token: make one at https://huggingface.co/settings/tokens and type "
            "'hf auth login', or set HF_TOKEN"
        )


def push(path: Path, repo: str) -> str:
    """Upload a data set to a repository of the hub; its address. Raises DeftlyError, one line, where that fails."""
    require_upload(repo)
    import httpx  # type: ignore[import-not-found]
    from huggingface_hub import HfApi  # type: ignore[import-not-found]
    from huggingface_hub.errors import HfHubHTTPError  # type: ignore[import-not-found]

    api = HfApi()
    try:
        api.create_repo(repo, repo_type="dataset", exist_ok=True)
        api.upload_folder(repo_id=repo, folder_path=str(path), repo_type="dataset")
        api.create_tag(repo, tag=VERSION, repo_type="dataset", exist_ok=True)
    except (HfHubHTTPError, httpx.HTTPError, OSError, ValueError) as error:
        reason = printable(" ".join(str(error).split()), 160)
        raise DeftlyError(
            f"cannot upload to {repo}: {reason}; the data set is whole in '{path}': upload it with "
            f"'hf upload {repo} {path} --repo-type dataset'"
        ) from None
    return f"https://huggingface.co/datasets/{repo}"
