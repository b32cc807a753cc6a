"""Pairs as rows of JSON, in the forms that `forms.FORMS` reads."""

from typing import Any

from alignjax.data import rows


def of_pair(pair: rows.Pair) -> tuple[str, dict[str, Any]]:
  """A form's name, and a row that this form reads as an equal pair. Where the pair came from is not part of a row.

  Two responses make a row of `preference`, one makes `unpaired` or `scored`, more make `ranked` or `scored`.

  Raises:
    ValueError: no form holds all of it.
  """
  row: dict[str, Any] = {'prompt': pair.prompt}
  if len(pair.responses) == 2:
    form, held = 'preference', ('label', 'weight', 'score', 'behaviour_logp')
    row |= {'chosen': pair.responses[0], 'rejected': pair.responses[1]}
  elif pair.score is not None:
    form, held = 'scored', ('weight', 'score', 'behaviour_logp')
    row |= {'responses': list(pair.responses), 'scores': list(pair.score)}
  elif len(pair.responses) == 1:
    form, held = 'unpaired', ('label', 'weight')
    row |= {'completion': pair.responses[0], 'label': pair.label}
  else:
    form, held = 'ranked', ('weight',)
    row |= {'responses': list(pair.responses)}
  defaults = rows.Pair('', ())._asdict()
  for name in ('label', 'weight', *rows.PER_RESPONSE):
    value = getattr(pair, name)
    if value == defaults[name]:
      continue
    if name not in held:
      raise ValueError(
        f'{pair.origin}: has {name} {value} and {len(pair.responses)} responses; the form {form} has no such column'
      )
    if name in ('label', 'weight'):
      row[name] = value
    elif form == 'preference' or name != 'score':
      row[name] = list(value)
  return form, row
