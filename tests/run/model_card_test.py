"""The model card of an export."""

import dataclasses
import json

import yaml

from alignjax.run import model_card, settings


def config_of(**values):
  return dataclasses.asdict(settings.from_dict(values))


def card_of(tmp_path, folder='model', step=2, **values):
  records = [{'step': 1, 'loss': 0.7}, {'step': 2, 'loss': 0.5, 'time/seconds': 9.0}, {'step': 3, 'loss': 0.1}]
  (tmp_path / 'metrics.jsonl').write_text(''.join(json.dumps(record) + '\n' for record in records))
  given = {'model': '/home/me/models/base', 'data': ('hh:/home/me/train.jsonl',), 'objective': 'simpo() + 0.1 * sft()'}
  return model_card.render(config_of(**given | values), tmp_path, folder, step)


def front_of(card):
  return yaml.safe_load(card.split('---\n')[1])


def test_a_card_gives_settings_metrics_of_the_exported_step_and_papers(tmp_path):
  card = card_of(tmp_path, optimizer='adamw(1e-06)')
  assert '| objective | `simpo() + 0.1 * sft()` |' in card
  assert '| data | `hh:train.jsonl` |' in card
  assert '## Metrics after step 2' in card
  assert '| train/loss | 0.5 |' in card
  assert 'time/' not in card
  assert 'https://arxiv.org/abs/2405.14734' in card  # SimPO


def test_a_card_does_not_depend_on_the_machine(tmp_path):
  card = card_of(tmp_path, reference='/home/me/models/reference')
  assert '/home' not in card
  assert str(tmp_path) not in card
  assert 'base_model' not in front_of(card)


def test_a_model_of_the_hub_is_named_as_the_base(tmp_path):
  front = front_of(card_of(tmp_path, 'adapter', model='Qwen/Qwen2.5-0.5B@main'))
  assert front['base_model'] == 'Qwen/Qwen2.5-0.5B'
  assert front['library_name'] == 'peft'


def test_a_run_of_an_earlier_version_may_lack_settings(tmp_path):
  config = config_of(model='base', objective='ipo()')
  del config['adapter_from']
  assert '| objective | `ipo()` |' in model_card.render(config, tmp_path, 'model', 2)


def test_without_metrics_there_are_no_results(tmp_path):
  card = model_card.render(config_of(model='base', data=('pairs.jsonl',)), tmp_path, 'model', 2)
  assert 'Metrics' not in card
  assert '| objective |' in card
