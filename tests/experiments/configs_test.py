"""Every shipped config: each variant is read, has an objective and an optimizer, and trains a tiny model."""

import dataclasses
import importlib.util
import json
import pathlib

import pytest

from alignjax import objectives
from alignjax.optim import recipes
from alignjax.run import config_file, settings, training
from tests import assets, runs

CONFIGS = pathlib.Path(__file__).parents[2] / 'experiments' / 'configs'
FILES = sorted(path for path in CONFIGS.glob('*.py') if path.name != '__init__.py')


def variants_of(path):
  specification = importlib.util.spec_from_file_location('config', path)
  module = importlib.util.module_from_spec(specification)
  specification.loader.exec_module(module)
  return list(getattr(module, 'VARIANTS', ['']))


EVERY = [f'{path.stem}:{variant}'.rstrip(':') for path in FILES for variant in variants_of(path)]


def load(name):
  path, colon, variant = name.partition(':')
  return config_file.load(f'{CONFIGS / path}.py{colon}{variant}').config


@pytest.mark.parametrize('name', EVERY)
def test_a_variant_has_an_objective_and_an_optimizer(name):
  config = load(name)
  assert objectives.parse(config.objective).name
  assert recipes.parse_optimizer(config.optimizer)
  assert '{' not in config.objective + config.optimizer + config.rollout_objective


@pytest.mark.parametrize('path', FILES, ids=lambda path: path.stem)
def test_a_docstring_has_a_command_sources_and_published_results(path):
  text = path.read_text()
  if path.stem != 'dpo':  # a copy of the defaults
    assert f'alignjax train --config=experiments/configs/{path.name}' in text.replace("='", '=')
    assert 'Sources' in text
    assert 'Published' in text


def test_published_numbers_are_in_the_configuration():
  config = load('is_daa_tldr:is_dpo')
  assert config.objective == 'importance_weighted(dpo(beta=0.05), clip=1.0)'
  assert (config.warmup, config.batch_size, config.schedule) == (50, 128, 'cosine(to=0.1)')
  assert load('alpha_dpo:llama3_v2').objective == 'alpha_dpo(beta=10.0, gamma=4, alpha=2)'
  assert load('is_daa_tldr:rpo').objective == 'dpo(beta=0.05) + 0.00025 * sft(mean=False)'
  assert load('ra_dpo_hh:ra2,risk=entropic(5.0),alpha=0.7').objective.startswith(
    'ra_dpo(risk=entropic(5.0), beta=0.1, '
  )


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  folder = runs.write_folder(tmp_path_factory.mktemp('configs'))
  assets.write_tiny_model(folder / 'base', seed=1, layers=1, vocab_size=384)
  with (folder / 'prompts.jsonl').open('w') as stream:
    for i in range(16):
      stream.write(json.dumps({'user': f'Tell me about film {i}'}) + '\n')
  return folder


@pytest.mark.slow  # tests/commands/train_test.py trains with settings of its own
@pytest.mark.parametrize('name', EVERY)
def test_a_variant_trains_a_tiny_model_for_two_steps(folder, tmp_path, name):
  config, tiny = load(name), runs.make_config(folder, tmp_path / 'run')
  changed = {
    **{field: getattr(tiny, field) for field in ('model', 'buckets', 'batch_size', 'workdir', 'remat', 'doctor')},
    'steps': 2,
    'epochs': 0,
    'eval_data': (),
    'data': tiny.data,
    'compute_dtype': 'float32',
    'adapter': 'lora(rank=2, alpha=4)' if config.adapter else '',
    'microbatches': 1,
    'warmup': min(config.warmup, 1.0),
    'max_prompt': 48,
    'base_model': str(folder / 'base') if 'online_' in config.optimizer else '',
  }
  if config.rollout_objective or config.samples != settings.Config.samples or config.pairing != 'all':
    changed |= {
      'prompts': (str(folder / 'prompts.jsonl'),),
      'prompts_per_round': 8,
      'max_new_tokens': 8,
      'reward': '' if config.rollout_objective else 'length(target=4, scale=2)',
      'data': tiny.data if config.rollout_objective else (),
      'buckets': tiny.buckets if config.rollout_objective else (),
    }
  assert training.train(dataclasses.replace(config, **changed)).step == 2


@pytest.mark.parametrize(
  ('argument', 'message'),
  [
    ('is_ddpo', 'unknown variant .is_ddpo.: must be one of sft, rm, dpo'),
    ('is_dpo,betta=0.1', '.betta. is neither a parameter of .is_dpo., which has the parameters beta, clip, nor'),
    ('is_dpo,beta', 'must be key=value, once for each key'),
    ('is_dpo,beta=0.1,beta=0.2', 'must be key=value, once for each key'),
    ('is_dpo,batch_size=many', 'batch_size'),
  ],
)
def test_a_wrong_argument_is_refused_by_name(argument, message):
  with pytest.raises(ValueError, match=message):
    load(f'is_daa_tldr:{argument}')


def test_settings_have_priority_over_the_variant():
  config = load('distribution_tldr:rlhf,samples=8,mesh.fsdp=4,seed=3,beta=0.1')
  assert (config.samples, config.mesh.fsdp, config.seed, config.objective) == (8, 4, 3, 'rlhf(beta=0.1)')
