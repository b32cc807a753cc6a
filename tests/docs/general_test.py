"""Any Google docstring becomes a section, and none of its pieces is lost."""

import inspect
import re

import pytest

from alignjax import judges, merging, rewards
from alignjax.optim import bases, recipes
from alignjax.risk import nested
from alignjax.sampling import strategies
from docs.pages import general

NESTED = {
  build.__name__: build for build in (nested.path_value, nested.markov_value, nested.advantage, nested.raise_one)
}
BUILDS = {**bases.BASES, **recipes.TRANSFORMS, 'weight_decay': recipes.weight_decay, **merging.METHODS, **NESTED}
BUILDS |= {**rewards.REWARDS, **judges.JUDGES, **strategies.STRATEGIES}
OWN = {name: build for name, build in BUILDS.items() if build.__module__.startswith('alignjax.')}


def merge(first, *others, share=0.5, seed=0):
  """Merges numbers.

  m = share first,   n <- sqrt(m)

  Where a_b and *this* matter [B].

    kept    as it is

  Args:
    first: the first,
      in nats.
    share, seed: both of them.

  Returns:
    A number.

  Raises:
    ValueError: share is
      negative.
    TypeError: first is none.

  Defaults:
    ours.

  References:
    Nobody 2031, A title, https://example.org/1.
    A book, volume 2.
  """


def test_a_section_has_all_pieces():
  assert general.section('merge', merge).split('\n\n') == [
    '## `merge`',
    '```python\nmerge(first, *others, share=0.5, seed=0)\n```',
    'Merges numbers.',
    '```text\nm = share first,   n <- sqrt(m)\n```',
    'Where a_b and *this* matter \\[B\\].',
    '```text\nkept    as it is\n```',
    '| argument | default | description |\n|---|---|---|\n| `first` | required | the first, in nats. |\n'
    '| `share`, `seed` | `0.5`, `0` | both of them. |',
    '**Returns** A number.',
    '- **Raises** `ValueError`: share is negative.\n- **Raises** `TypeError`: first is none.',
    '**Defaults:** ours.',
    '- [A title](https://example.org/1), Nobody 2031.\n- A book, volume 2.',
  ]


@pytest.mark.parametrize('name', OWN)
def test_every_word_of_a_docstring_is_in_its_section(name):
  words, shown = (
    set(re.findall(r'[A-Za-z]{3,}', text)) for text in (inspect.getdoc(OWN[name]), general.section(name, OWN[name]))
  )
  assert words - shown <= {'Args', 'References'}
