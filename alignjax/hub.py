"""Files of repositories on the Hugging Face Hub, in the cache that other tools use too."""

from collections.abc import Iterator, Sequence
import contextlib
import pathlib
from typing import NamedTuple


class Repository(NamedTuple):
  """A repository on the Hub."""

  kind: str  # 'model' or 'dataset'
  name: str  # owner/name
  revision: str | None  # a branch, a tag or a commit; None for the main branch


def snapshot(repository: Repository, patterns: Sequence[str]) -> str:
  """The folder of a repository in the cache, after downloading the files that it lacks.

  Args:
    repository: the repository.
    patterns: names of the files, or patterns.

  Raises:
    ValueError: the repository is unknown, closed, or neither cached nor reachable. The message gives the reason and
      what to type.
  """
  import huggingface_hub  # slow to import, and not needed for folders

  kind, name, revision = repository
  with _explained(repository):
    return huggingface_hub.snapshot_download(name, repo_type=kind, revision=revision, allow_patterns=list(patterns))


def file_names(repository: Repository) -> list[str]:
  """The names of the files in a repository; without a connection, of those in the cache. Raises: see `snapshot`."""
  import huggingface_hub  # see above
  from huggingface_hub import errors

  kind, name, revision = repository
  with _explained(repository):
    try:
      return huggingface_hub.HfApi().list_repo_files(name, repo_type=kind, revision=revision)
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError):
      raise
    except Exception:  # each network library has its own
      folder = pathlib.Path(
        huggingface_hub.snapshot_download(
          name, repo_type=kind, revision=revision, allow_patterns=[], local_files_only=True
        )
      )
      return [path.relative_to(folder).as_posix() for path in folder.rglob('*') if path.is_file()]


@contextlib.contextmanager
def _explained(repository: Repository) -> Iterator[None]:
  """Turns errors of the Hub's library into a ValueError with the reason and what to type."""
  from huggingface_hub import constants, errors  # see above

  kind, name, revision = repository
  page = f'https://huggingface.co/{"datasets/" if kind == "dataset" else ""}{name}'
  try:
    yield
  except errors.GatedRepoError:
    raise ValueError(f'{name} asks for a licence: accept it on {page}, and type: hf auth login') from None
  except errors.RevisionNotFoundError:
    raise ValueError(f'{name} has no revision {revision} on the Hugging Face Hub: check the part after @') from None
  except errors.RepositoryNotFoundError:
    what = 'dataset' if kind == 'dataset' else 'repository'
    raise ValueError(
      f'the Hugging Face Hub has no {what} {name} that you may read: check the name; for a private one, type: '
      'hf auth login'
    ) from None
  except Exception as error:  # each network library has its own
    option = ' --repo-type dataset' if kind == 'dataset' else ''
    option += f' --revision {revision}' if revision else ''
    place = 'file or folder' if kind == 'dataset' else 'folder'
    raise ValueError(
      f'{constants.HF_HUB_CACHE} does not hold {name} completely and the Hugging Face Hub cannot be reached '
      f'({type(error).__name__}): give a {place}, or type on a machine with access: hf download {name}{option} '
      '--local-dir <folder>'
    ) from error
