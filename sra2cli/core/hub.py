"""Checkpoints by hub name, hf:ORG/NAME[/FILE][@REVISION], and folders sent to the hub.

Files lie in the hub's own cache. A name is pinned to its commit before anything is opened, so that
all processes, and all that a command does, see one state of a repository; the pinned name is
what records hold.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from sra2cli.core import processes
from sra2cli.core.errors import SetupError, UserError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

PREFIX = "hf:"
WEIGHTS = "model.safetensors"  # of a repository, or folder, with one network
REPOSITORY = r"[A-Za-z0-9_.-]+/[A-Za-z0-9_.-]+"
NAME = re.compile(rf"{PREFIX}/*({REPOSITORY})(?:/([^@]+))?(?:@(.+))?")
SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")
LISTED = 10  # files or revisions that an error names
LOGIN = "log in with `hf auth login`, or set HF_TOKEN"

T = TypeVar("T")


@dataclass(frozen=True)
class HubFile:
    """A file of a repository. revision: a branch, tag or commit."""

    repository: str
    file: str
    revision: str

    def __str__(self) -> str:
        return f"{PREFIX}{self.repository}/{self.file}@{self.revision}"


def is_name(source: Path | str) -> bool:
    """Whether a source is named by the hub's prefix, not a path."""
    return str(source).startswith(PREFIX)


def parsed(source: Path | str) -> HubFile:
    """A hub name's parts; SetupError where it is none."""
    found = NAME.fullmatch(str(source))
    if found is None:
        raise SetupError(f"{source}: a hub name is {PREFIX}ORG/NAME, then perhaps /FILE, @REVISION")
    repository, file, revision = found.groups()
    return HubFile(repository, file or WEIGHTS, revision or "main")


def title(source: Path) -> str:
    """A file's name without its suffix; of a hub name, that of its repository."""
    if not is_name(source):
        return source.stem
    wanted = parsed(source)
    name = wanted.repository.partition("/")[2]
    return name if wanted.file == WEIGHTS else f"{name}-{Path(wanted.file).stem}"


def pinned(source: Path, *, offline: bool = False) -> Path:
    """A hub name with its commit, the file now being in the cache; other paths as they are.

    Of several processes all must ask: the first of each machine downloads.

    Args:
        offline: never touch the network; it must then be in the cache.

    Raises:
        SetupError: no such repository, revision or file, or it is not to be had.
    """
    if not is_name(source):
        return source
    group = processes.active()
    found = group.share(_resolved(source, offline) if group.main else None)
    if isinstance(found, UserError):
        raise found
    if not group.main and group.first_here:
        _fetched(found, offline)
    group.wait()
    return Path(str(found))


def local(source: Path, *, offline: bool = False) -> Path:
    """Where a source lies on this machine; other paths as they are.

    A pinned name is in the cache; one that is not is looked up, and downloaded, by this process.
    """
    return _fetched(parsed(source), offline) if is_name(source) else source


def send(folder: Path, repository: str, *, private: bool = False) -> dict[str, str]:
    """Upload a folder to a repository of the hub, made where it is not there.

    Args:
        private: of one that is made.

    Returns:
        {"url": of the repository, "commit": the new one}

    Raises:
        SetupError: no login that may write there, or no network.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    url = _asked(
        lambda: api.create_repo(repository, private=private or None, exist_ok=True), repository
    )
    commit = _asked(
        lambda: api.upload_folder(
            repo_id=repository, folder_path=folder, commit_message="Upload with sra2 export"
        ),
        repository,
    )
    return {"url": str(url), "commit": commit.oid}


def check_repository(name: str) -> str:
    """ORG/NAME, as the hub takes it; SetupError for anything else."""
    name = name.removeprefix(PREFIX)
    if re.fullmatch(REPOSITORY, name) is None:
        raise SetupError(f"'{name}' is no name of a repository: ORG/NAME")
    return name


def _resolved(source: Path, offline: bool) -> HubFile | UserError:
    """With its commit, downloaded; or why not, to be raised by all processes."""
    try:
        wanted = parsed(source)
        file = _fetched(wanted, offline)
    except UserError as error:
        return error
    snapshot = file.parents[wanted.file.count("/")]  # …/snapshots/COMMIT
    return replace(wanted, revision=snapshot.name)


def _fetched(wanted: HubFile, offline: bool) -> Path:
    """The file in the cache of this machine."""
    from huggingface_hub import HfApi, errors

    def download() -> str:
        return HfApi().hf_hub_download(
            wanted.repository, wanted.file, revision=wanted.revision, local_files_only=offline
        )

    try:
        return Path(_asked(download, wanted.repository))
    except errors.LocalEntryNotFoundError as error:
        raise SetupError(_uncached(wanted, offline, error)) from None
    except errors.EntryNotFoundError:
        there = _there(lambda api: api.list_repo_files(wanted.repository, revision=wanted.revision))
        files = [name for name in there if name.endswith(SUFFIXES)]
        raise SetupError(
            f"{wanted.repository} has no {wanted.file} at {wanted.revision}{_listed(files)}: "
            f"name a file of it, as {PREFIX}{wanted.repository}/FILE"
        ) from None
    except errors.RevisionNotFoundError:
        refs = _there(lambda api: _names(api.list_repo_refs(wanted.repository)))
        raise SetupError(
            f"{wanted.repository} has no revision '{wanted.revision}'{_listed(refs)}: "
            "a branch, a tag or a whole commit"
        ) from None


def _asked(ask: Callable[[], T], repository: str) -> T:
    """What the hub answers; SetupError for what has nothing to do with one file."""
    from huggingface_hub import errors

    try:
        return ask()
    except (errors.EntryNotFoundError, errors.RevisionNotFoundError):
        raise
    except errors.GatedRepoError:
        raise SetupError(
            f"{repository} is gated: accept its terms at {_endpoint()}/{repository}, then {LOGIN}"
        ) from None
    except (errors.RepositoryNotFoundError, errors.HFValidationError):
        raise SetupError(
            f"the hub has no repository '{repository}' that you may read: check the name, or, "
            f"where it is private, {LOGIN}"
        ) from None
    except errors.OfflineModeIsEnabled:
        raise SetupError("HF_HUB_OFFLINE is set: unset it to reach the hub") from None
    except errors.HfHubHTTPError as error:
        status, said = error.response.status_code, error.server_message or _reason(error)
        fix = LOGIN if status in (401, 403) else "change that"
        fix = "try again later" if status == 429 or status >= 500 else fix
        raise SetupError(f"the hub refuses {repository} ({status}: {said}): {fix}") from None
    except Exception as error:  # of the library's HTTP client, which changes between versions
        if isinstance(error, OSError) and error.errno is not None:
            raise  # of the disk
        raise SetupError(
            f"cannot reach the hub at {_endpoint()} ({_reason(error)}): check the connection"
        ) from None


def _uncached(wanted: HubFile, offline: bool, error: Exception) -> str:
    """Why a file that is not in the cache was not downloaded."""
    from huggingface_hub import constants

    where = f"{wanted} is not in the hub's cache ({constants.HF_HUB_CACHE})"
    if offline:
        return f"{where}: without --offline it is downloaded"
    if constants.HF_HUB_OFFLINE:
        return f"{where}: unset HF_HUB_OFFLINE to download it"
    reason = _reason(error.__cause__ or error)
    return f"{where}, and the hub at {_endpoint()} does not answer ({reason}): check the connection"


def _there(ask: "Callable[[HfApi], list[str]]") -> list[str]:
    """What a repository holds, for an error; [] where that cannot be told."""
    from huggingface_hub import HfApi

    try:
        return ask(HfApi())
    except Exception:  # the error it is for is said without it
        return []


def _names(refs: Any) -> list[str]:
    return [ref.name for ref in (*refs.branches, *refs.tags)]


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return f" (there are: {', '.join(names[:LISTED])}{more})" if names else ""


def _endpoint() -> str:
    from huggingface_hub import constants

    return str(constants.ENDPOINT)


def _reason(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines or [type(error).__name__])[0][:160]
