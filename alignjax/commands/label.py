"""Labels prompts: draws responses from a model, scores them, and writes rows of training data.

  alignjax label --model=runs/sft/model --prompts=prompts.jsonl --reward='reward_model("runs/rm/model")' \
      --samples=5 --pairing=best_worst --out=pairs.jsonl

This is the data of alpha-DPO and of importance-sampled alignment (--pairing=best_worst), of best-of-N fine-tuning
(--pairing=best), and of objectives that read scores (--pairing=all). All responses, with the parts of their scores, are
in <out>.samples.jsonl. A run that was interrupted continues with the same command. The same command writes the same
files.

Exit codes: 0 done, 1 an error in flags, model, prompts or rewards.
"""

import dataclasses
import hashlib
import json
import pathlib
import time
from typing import Any

import jax

from alignjax import paths, rewards
from alignjax.commands import program
from alignjax.data.reading import rows
from alignjax.models import checkpoint_io, fingerprints, peft
from alignjax.run import (
  fields,
  labelling,
  locations,
  process_flags,
  prompt_settings,
  sampling_settings,
  user_code,
)
from alignjax.sampling import text
from alignjax.training import processes, rollout_rows


@dataclasses.dataclass(frozen=True)
class Settings(sampling_settings.SamplingSettings, prompt_settings.PromptSettings, user_code.UserCode):
  """Model and rows."""

  model: str = fields.field(
    '', 'Model that responds: a folder in Hugging Face format, or a name on the Hub.', required=True, path=paths.READ
  )
  adapter: str = fields.field(
    '', 'Folder of a LoRA adapter in PEFT format to merge into the model; empty: none.', path=paths.READ
  )
  pairing: str = fields.field(
    'best_worst',
    'Responses of a row: all as drawn, the best, the best and the worst, the first two ordered by score, or one row '
    'for each pair.',
    choices=tuple(rollout_rows.PAIRINGS),
  )
  ties: str = fields.field(
    'drop', 'Pairs of equal scores: leave them out, or keep them with the label 1/2.', choices=('drop', 'keep')
  )
  unfinished: str = fields.field(
    'keep', 'Responses that were cut off: use them, or leave them out.', choices=('keep', 'drop')
  )
  behaviour_logp: bool = fields.field(
    False,
    'Write the log-probability under which each response was drawn, for importance weights; leaves out responses that '
    'were cut off.',
  )
  out: str = fields.field('', 'The .jsonl file to write.', required=True, path=paths.WRITTEN)
  overwrite: bool = fields.field(False, 'Replace the file if it exists.')
  samples: int = fields.field(5, 'Number of responses to each prompt.', at_least=1)
  processes: process_flags.Processes = dataclasses.field(default_factory=process_flags.Processes, metadata={'flag': ''})

  def __post_init__(self):
    fields.check(self)


def run(settings: Settings) -> None:
  """Draws, scores and writes.

  Raises:
    ValueError: the settings, the model, the prompts or the reward cannot be used.
  """
  out = _out(settings)
  reward = fields.naming('--reward', rewards.parse, settings.reward)
  options = sampling_settings.options(settings)
  prompts, report = prompt_settings.read(settings)
  if jax.process_index() == 0:
    print(f'{", ".join(settings.prompts)}: {report}')
  settings = locations.with_paths(sampling_settings.settled(settings), models=('model', 'adapter'), data=())
  loading = checkpoint_io.Loading(together=processes.on_all)
  if settings.adapter:
    loading = loading._replace(convert=peft.merging(settings.adapter, checkpoint_io.load_config(settings.model)))
  store = labelling.Store(
    out.with_name(f'{out.name.removesuffix(".jsonl")}.samples.jsonl'), _identity(settings, prompts, reward)
  )
  start = time.monotonic()
  labelling.label(text.load(settings.model, settings.compute_dtype, loading), options, prompts, reward, store)
  if jax.process_index() == 0:
    forming = labelling.Forming(settings.pairing, settings.ties, settings.unfinished, settings.behaviour_logp)
    counts = labelling.form(store, prompts, forming, out)
    print(
      f'{counts.prompts} prompts, {counts.responses} responses, {counts.finished:.1%} finished, mean score '
      f'{counts.score:.4g}, {counts.rows} rows, {time.monotonic() - start:.1f} s'
    )
    form = '' if forming.form == 'preference' else f'{forming.form}:'
    # Training appends an end token to a response that is short enough, so a response that was cut off must not be.
    cut = settings.unfinished == 'keep' and not settings.behaviour_logp and counts.finished < 1
    limits = f' --max_response={settings.max_new_tokens} --long_responses=cut' if cut else ''
    print(f'wrote {settings.out}; read it with --data={form}{settings.out}{limits}. All responses are in {store.path}')


def _out(settings: Settings) -> pathlib.Path:
  """The file to write, after checking what can be checked at once."""
  out = pathlib.Path(settings.out)
  if out.suffix != '.jsonl':
    raise ValueError(f'--out={settings.out}: the name must end with .jsonl')
  if not settings.overwrite and processes.from_first(lambda alive: 'yes' if out.exists() else ''):
    raise ValueError(f'--out={settings.out}: the file exists; choose another one, or give --overwrite')
  fewest = rollout_rows.PAIRINGS[settings.pairing].fewest
  if settings.samples < fewest:
    raise ValueError(
      f'--pairing={settings.pairing} takes two or more responses to a prompt: give --samples={fewest} or more'
    )
  return out


def _identity(settings: Settings, prompts: list[rows.Example], reward: rewards.Reward) -> dict[str, Any]:
  """What the responses and their scores depend on."""
  names = ['samples', 'max_prompt', 'max_new_tokens', 'template_arguments', 'seed', 'compute_dtype', 'reward']
  content = json.dumps([[each.prompt, dict(each.fields)] for each in prompts], sort_keys=True, default=str)
  return {name: getattr(settings, name) for name in names} | {
    'strategy': [settings.greedy, settings.temperature, settings.top_k, settings.top_p, settings.strategy],
    'model': [fingerprints.of(folder) for folder in (settings.model, settings.adapter) if folder],
    'prompts': hashlib.sha256(content.encode('utf-8', 'backslashreplace')).hexdigest(),
    'reward_models': dict(reward.fingerprints),
    'imports': user_code.fingerprints(settings.imports) if settings.imports else {},
  }


PROGRAM = program.Program('label', __doc__, Settings, run, join=process_flags.join, leave=process_flags.leave)
