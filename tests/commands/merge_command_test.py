"""The command `alignjax merge`: its flags, methods that are no expressions, and adapters."""

import json
import pathlib

import jax
import numpy as np
import pytest

from alignjax import expressions, merging
from alignjax.commands import merge, program
from alignjax.models import checkpoint_io, lora, manifest, peft
from alignjax.run import merge_folders

GOLDEN = pathlib.Path(__file__).parents[1] / 'golden'


def test_no_models_are_refused(tmp_path):
  with pytest.raises(ValueError, match='--models: give at least one folder'):
    merge_folders.merge(tmp_path / 'merged', merging.linear(), merge_folders.Inputs([]))


@pytest.mark.parametrize(
  ('text', 'says'),
  [
    ('tise()', "unknown name 'tise'; did you mean ties("),
    ('ties(density=2)', r'ties: density: must be in (0, 1], got 2'),
    ('ties(densty=0.5)', "ties has no argument 'densty'; did you mean 'density'?"),
    ('0.5', 'this is 0.5, not a merge method'),
    ('ties() + linear()', 'only calls of known names and literals are allowed'),
    ('0.5 * ties()', 'only calls of known names and literals are allowed'),
    ('dpo()', "unknown name 'dpo'"),
    ('', 'the expression is empty'),
    (None, 'give a merge method as text'),
  ],
)
def test_expressions_that_are_no_method(text, says):
  with pytest.raises(expressions.ExpressionError) as caught:
    merge_folders.parse_method(text)
  assert says in str(caught.value)
  if text is not None:
    listed = str(caught.value).split('Known merge methods: ')[1]
    assert all(name in listed for name in merging.METHODS)
  assert 'objective' not in str(caught.value)


@pytest.mark.parametrize('dtype', ['', 'bfloat16'])
def test_an_adapter_is_merged_into_its_base(tmp_path, dtype):
  flags = ['merge', f'--models={GOLDEN / "gpt_neox"}', f'--adapter={GOLDEN / "peft_gpt_neox"}']
  flags += [f'--dtype={dtype}'] if dtype else []
  assert program.execute(merge.PROGRAM, [*flags, f'--out={tmp_path / "merged"}']) == 0
  config = checkpoint_io.load_config(GOLDEN / 'gpt_neox')
  settings, adapters = peft.load(GOLDEN / 'peft_gpt_neox', config)
  base = checkpoint_io.load_params(GOLDEN / 'gpt_neox', config)
  merged = jax.device_get(jax.jit(lora.merge, static_argnums=2)(base, adapters, settings))
  expected = jax.tree.map(lambda leaf: leaf.astype(dtype or leaf.dtype), merged)
  assert checkpoint_io.load_config(tmp_path / 'merged') == config
  assert checkpoint_io.stored_dtypes(tmp_path / 'merged') == {dtype or 'float32'}
  found = checkpoint_io.load_params(tmp_path / 'merged', config)
  tolerance = 1e-6 if not dtype else 2**-7  # one step of bfloat16 around 2
  jax.tree.map(
    lambda x, y: np.testing.assert_allclose(x, y.astype(np.float32), atol=tolerance), jax.device_get(found), expected
  )
  source = json.loads((tmp_path / 'merged' / manifest.FILE).read_text())['source']
  assert source == {'base': str(GOLDEN / 'gpt_neox'), 'adapter': str(GOLDEN / 'peft_gpt_neox')}


@pytest.mark.parametrize(
  ('flags', 'message'),
  [
    ([], "give either --method, such as --method='ties(density=0.5)', or --adapter=<folder>"),
    (['--method=linear()', '--adapter=a'], 'give either --method'),
    (['--adapter=a', '--base=b'], '--adapter takes one folder in --models'),
    (['--adapter=a', '--models=m,n'], '--adapter takes one folder in --models'),
    (['--adapter=nowhere'], '--adapter=nowhere: there is no such folder'),
  ],
)
def test_flags_of_an_adapter_that_do_not_fit_are_refused(tmp_path, capsys, flags, message):
  model = f'--models={GOLDEN / "gpt_neox"}'
  assert program.execute(merge.PROGRAM, ['merge', model, *flags, f'--out={tmp_path / "merged"}']) == 1
  assert message in capsys.readouterr().err
  assert not (tmp_path / 'merged').exists()
