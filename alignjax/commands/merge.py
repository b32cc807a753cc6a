r"""Merges models in Hugging Face folders of any size, with little memory.

  alignjax merge --method='ties(density=0.5)' --base=base --models=helpful,harmless --out=merged
  alignjax merge --method='slerp(t=0.3)' --models=first,second --out=merged --dtype=bfloat16
  alignjax merge --method='linear()' --models=first,second --weights='*.mlp.*=0.3,0.7; *=0.5' --out=merged
  alignjax merge --adapter=adapter --models=base --out=merged

Methods are linear, slerp, task_arithmetic, ties, dare, breadcrumbs, della and model_stock; their docstrings in
alignjax/merging/offline.py explain their arguments. A density or a weight is one number, or one for each model
('0.3,0.7'), or either by patterns of tensor names, as in the last example; the first matching pattern counts.

The models and the base must have the same tensors, configuration and tokenizer; otherwise an error names what differs.
--adapter merges a LoRA adapter in PEFT format into its base model instead.
The output folder appears only when it is complete. Its merge.json records the merge.

Exit codes: 0 done, 1 an error in flags or folders.
"""

import dataclasses

import jax
from rich import console as rich_console
from rich import progress as rich_progress

from alignjax import paths
from alignjax.commands import program
from alignjax.models import folders
from alignjax.run import fields, locations, merge_folders, process_flags, user_code
from alignjax.training import processes


@dataclasses.dataclass(frozen=True)
class Settings(user_code.UserCode):
  """Merging."""

  method: str = fields.field('', "Expression of the method, such as 'ties(density=0.5)'; empty: merge --adapter.")
  adapter: str = fields.field(
    '', 'Folder of a LoRA adapter in PEFT format to merge into the one model of --models.', path=paths.READ
  )
  models: tuple[str, ...] = fields.field(
    (), 'Models: folders in Hugging Face format, or names on the Hub.', required=True, path=paths.READ
  )
  out: str = fields.field('', 'Folder to create.', required=True, path=paths.WRITTEN)
  base: str = fields.field('', 'Model that the models were trained from.', path=paths.READ)
  weights: str = fields.field('', "Weights of the models, '0.3,0.7' or '*.mlp.*=0.3,0.7; *=0.5'; empty: 1 for each.")
  dtype: str = fields.field(
    '', 'Type of the stored weights; empty: as in the first model.', choices=('', *sorted(folders.DTYPES.values()))
  )
  assets_from: str = fields.field(
    '', 'Folder of the configuration and the tokenizer; empty: the first model.', path=paths.READ
  )
  allow_different_tokenizers: bool = fields.field(False, 'Merge models whose tokenizer files differ.')
  processes: process_flags.Processes = dataclasses.field(default_factory=process_flags.Processes, metadata={'flag': ''})


def run(settings: Settings) -> None:
  """Merges the models, or an adapter and its base, on process 0.

  Raises:
    ValueError: the settings or the folders cannot be used.
  """
  if bool(settings.method) == bool(settings.adapter):
    raise ValueError("give either --method, such as --method='ties(density=0.5)', or --adapter=<folder>")
  if settings.adapter and (len(settings.models) != 1 or settings.base or settings.weights):
    raise ValueError('--adapter takes one folder in --models, the base of the adapter, and no --base or --weights')
  settings = dataclasses.replace(
    settings,
    models=tuple(locations.resolve(model, '--models') for model in settings.models),
    base=settings.base and locations.resolve(settings.base, '--base'),
    adapter=settings.adapter and locations.resolve(settings.adapter, '--adapter'),
  )
  if settings.adapter:
    _merge_adapter(settings)
  else:
    processes.on_first(lambda: _merge(settings))


def _merge_adapter(settings: Settings) -> None:
  """Merges an adapter into its base model."""
  if jax.process_count() > 1:
    raise ValueError(f'--adapter={settings.adapter}: an adapter is merged by one process, not {jax.process_count()}')
  merge_folders.merge_adapter(settings.out, settings.models[0], settings.adapter, settings.dtype, settings.assets_from)
  print(f'wrote {settings.out}')


def _merge(settings: Settings) -> None:
  """Merges the models, and shows the progress on a terminal."""
  console = rich_console.Console(stderr=True)
  with rich_progress.Progress(console=console, disable=not console.is_terminal) as progress:
    task = progress.add_task('merging', total=1.0)
    merge_folders.merge(
      settings.out,
      fields.naming('--method', merge_folders.parse_method, settings.method),
      merge_folders.Inputs(settings.models, settings.base or None, settings.weights or None),
      merge_folders.Output(settings.dtype or None, settings.assets_from or None, settings.allow_different_tokenizers),
      advance=lambda share: progress.advance(task, share),
    )
  print(f'wrote {settings.out}')


PROGRAM = program.Program('merge', __doc__, Settings, run, join=process_flags.join, leave=process_flags.leave)
