"""Writes examples as JSON rows that the forms in `sources.FORMS` can read back."""

from typing import Any

from alignjax.data.reading import rows


def of_example(example: rows.Example) -> tuple[str, dict[str, Any]]:
  """Returns the name of a form, and a row that this form reads as an equal example, except for its path and line.

  Two responses become a row of `preference`, one `unpaired` or `scored`, more `ranked` or `scored`, none `prompts`.
  A response without a prompt becomes `text`.

  Raises:
    ValueError: no form has columns for all the fields of the example.
  """
  example = example._replace(responses=tuple(map(_response, example.responses)))
  row = of_prompt(example.prompt)
  if example.prompt == '' and len(example.responses) == 1:
    form, columns, row = 'text', ('weight',), {'text': example.responses[0]}
  elif not example.responses:
    form, columns = 'prompts', ('weight',)
  elif len(example.responses) == 2:
    form, columns = 'preference', ('label', 'weight', 'score', 'behaviour_logp', 'behaviour_token_logp')
    row |= {'chosen': example.responses[0], 'rejected': example.responses[1]}
  elif example.score is not None:
    form, columns = 'scored', ('weight', 'score', 'behaviour_logp', 'behaviour_token_logp')
    row |= {'responses': list(example.responses), 'scores': list(example.score)}
  elif len(example.responses) == 1:
    form, columns = 'unpaired', ('label', 'weight')
    row |= {'completion': example.responses[0], 'label': example.label}
  else:
    form, columns = 'ranked', ('weight',)
    row |= {'responses': list(example.responses)}
  defaults = rows.Example('', ())._asdict()
  for name in ('label', 'weight', *rows.PER_RESPONSE, 'behaviour_token_logp'):
    value = getattr(example, name)
    if value == defaults[name]:
      continue
    if name not in columns:
      raise ValueError(
        f'{example.origin}: has {name} {value} and {len(example.responses)} responses; the form {form} has no such '
        'column'
      )
    if name in ('label', 'weight'):
      row[name] = value
    elif name == 'behaviour_token_logp':
      row['behaviour_logp'] = [list(each) for each in value]
    elif form == 'preference' or name != 'score':
      row[name] = list(value)
  return form, row


def of_prompt(prompt: rows.Prompt) -> dict[str, Any]:
  """The columns of a prompt: `prompt`, and those of what else the chat template gets."""
  if not isinstance(prompt, rows.Dialogue):
    return {'prompt': prompt}
  columns = {name: each for name, each in prompt.variables.items() if name in ('tools', 'documents')}
  others = {name: each for name, each in prompt.variables.items() if name not in columns}
  return {'prompt': prompt.messages} | columns | ({'chat_template_kwargs': others} if others else {})


def _response(response: rows.Response) -> Any:
  return response if isinstance(response, str) else [response]
