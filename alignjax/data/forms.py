"""The forms of rows: which columns a row has, and what they mean. A new form is a function and a line of FORMS."""

from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple

from alignjax.data import generic_forms, public_forms, rows


class Form(NamedTuple):
  """How a row becomes a `Pair`."""

  # Takes the fields of a row, and names of fields of messages or objects in it that are to be left unused. Raises
  # Refused or Dropped. Its docstring says what the columns hold.
  parse: Callable[[Mapping[str, Any], Collection[str]], rows.Pair]
  columns: tuple[str, ...]
  unused: tuple[str, ...] = ()  # published beside them, without use here


DEFAULT = 'preference'
FORMS: dict[str, Form] = {
  'preference': Form(generic_forms.preference, generic_forms.PREFERENCE),
  'unpaired': Form(generic_forms.unpaired, generic_forms.UNPAIRED),
  'ranked': Form(generic_forms.ranked, generic_forms.RANKED),
  'scored': Form(generic_forms.scored, generic_forms.SCORED),
  'scored_pair': Form(generic_forms.scored_pair, generic_forms.SCORED),
  'hh': Form(public_forms.hh, public_forms.HH),
  'hh_text': Form(public_forms.hh_text, public_forms.HH),
  'ultrafeedback': Form(public_forms.ultrafeedback, public_forms.ULTRAFEEDBACK, public_forms.ULTRAFEEDBACK_UNUSED),
  'ultrafeedback_pair': Form(
    public_forms.ultrafeedback_pair, public_forms.ULTRAFEEDBACK, public_forms.ULTRAFEEDBACK_UNUSED
  ),
  'binarised': Form(public_forms.binarised, public_forms.BINARISED, public_forms.BINARISED_UNUSED),
  'tldr': Form(public_forms.tldr, public_forms.TLDR, public_forms.TLDR_UNUSED),
}
