"""Settings of programs that draw responses to prompts and score them."""

import dataclasses

from alignjax import paths
from alignjax.data.reading import drops, rows, sources
from alignjax.run import fields, locations


@dataclasses.dataclass(frozen=True)
class PromptSettings:
  """Prompts and reward."""

  prompts: tuple[str, ...] = fields.field(
    (),
    'Prompts, [form:]location as for --data of training, or a dataset on the Hub; can be repeated.',
    required=True,
    path=paths.READ,
  )
  ignore_fields: tuple[str, ...] = fields.field(
    (), 'Columns of --prompts to ignore, and paths of fields within them, such as prompt[].weight.'
  )
  unknown_columns: str = fields.field(
    'refuse', 'Columns of --prompts that the form does not have: an error, or left out.', choices=('refuse', 'note')
  )
  reward: str = fields.field('', 'Reward of a response, such as 0.7 * vader() - missing_end(1.0).', required=True)
  reward_fields: tuple[str, ...] = fields.field(
    (), 'Columns of the prompts that rewards read, such as the answer of exact_answer("answer").'
  )


def read(settings: PromptSettings) -> tuple[list[rows.Example], drops.DropReport]:
  """Reads the rows of the prompts, with the columns that rewards read as their `fields`.

  Raises:
    DataError: a row is malformed; the message names the line and the field.
    ValueError: a location cannot be read, or no prompts are left.
  """
  found = locations.with_paths(settings, models=(), data=('prompts',))
  report = drops.DropReport()
  examples = list(
    sources.read_examples(
      found.prompts,
      report,
      ignore_fields=settings.ignore_fields,
      unknown_columns=settings.unknown_columns,
      default='prompts',
      kept=settings.reward_fields,
    )
  )
  if not examples:
    raise ValueError(f'{", ".join(settings.prompts)}: no prompts are left: {report}')
  return examples, report
