"""Uploads an exported model to the Hugging Face Hub."""

from collections.abc import Callable
from concurrent import futures
import pathlib
import re

from alignjax import paths
from alignjax.run import exports
from alignjax.training import processes

_NAME = re.compile(r'[\w-][\w.-]*/[\w-][\w.-]*')


def check(repository: str, workdir: str) -> None:
  """Checks, before a run, what an upload after it needs; '' uploads nothing.

  Raises:
    ValueError: the name of the repository is malformed, there is no token for the Hub, or the model will not be on a
      disk.
  """
  if not repository:
    return
  if not _NAME.fullmatch(repository):
    raise ValueError(f'config.push_to_hub = {repository!r}: give a name such as me/model')
  if paths.scheme(workdir):
    raise ValueError(
      f'config.push_to_hub = {repository!r}: uploads need a folder on a disk, but the model will be in {workdir}; '
      'remove the setting, copy the model after training, and type: hf upload'
    )
  import huggingface_hub  # slow to import, and not needed without an upload

  if huggingface_hub.get_token() is None:
    raise ValueError(
      f'config.push_to_hub = {repository!r}: no token for the Hugging Face Hub: type hf auth login, or set HF_TOKEN'
    )


def upload(repository: str, folder: pathlib.Path, announce: Callable[[str], None]) -> None:
  """Uploads a folder as one commit, from process 0, while the others wait. A new repository is private.

  Args:
    repository: the name of the repository, such as me/model; '' uploads nothing.
    folder: the folder of the model.
    announce: called with one line.

  Raises:
    ExportError: the folder is complete on this machine, but cannot be uploaded.
  """
  if not repository:
    return
  announce(f'uploading {folder} to {repository}')

  def upload_while_alive(alive: Callable[[], None]) -> str:
    with futures.ThreadPoolExecutor(1) as pool:
      future = pool.submit(_upload, repository, folder)
      while not future.done():
        alive()
        futures.wait([future], timeout=1.0)
      return future.result()

  try:
    announce(f'the model is at {processes.from_first(upload_while_alive)}')
  except ValueError as error:
    raise exports.ExportError(
      f'{folder} is complete, but it is not uploaded: {error}. Type: hf upload {repository} {folder}'
    ) from error


def _upload(repository: str, folder: pathlib.Path) -> str:
  """Uploads, and returns the address of the commit. Raises ValueError if that fails."""
  import huggingface_hub

  try:
    hub = huggingface_hub.HfApi()
    hub.create_repo(repository, private=True, exist_ok=True)
    return hub.upload_folder(repo_id=repository, folder_path=folder, commit_message='Upload the model').commit_url
  except Exception as error:  # each network library has its own
    raise ValueError(f'{type(error).__name__}: {" ".join(str(error).split())}') from error
