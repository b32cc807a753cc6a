"""Tests of findings about chat templates, control tokens in texts, and objectives that compare prompts."""

import datetime

import pytest

from alignjax import objectives
from alignjax.data.reading import rows
from alignjax.data.tokens import encoding, tokenization
from alignjax.doctor import declarations, examples, findings, tokenizers
from tests.data import variants

ERROR, WARNING, NOTE = findings.SEVERITIES
USER = [{'role': 'user', 'content': 'Why?'}]
STRIPS = variants.TURNS.replace("m['content']", "m['content'].split('</think>')[-1]")
LAST = variants.TURNS.replace(
  "m['content']", "('<think></think>' if loop.last and m['role'] != 'user' else '') + m['content']"
)


def examine(folder, turns=variants.TURNS, **config):
  folder = variants.byte_level(folder, template=turns + variants.GENERATION, **config)
  tokenizer = tokenization.Tokenizer.load(folder, lambda: datetime.datetime(2021, 2, 3))
  return {finding.name: finding for finding in tokenizers.examine(tokenizer, vocab_size=384)}


@pytest.mark.parametrize(
  ('turns', 'config', 'name', 'severity', 'seen'),
  [
    ("{{ strftime_now('%Y') }}" + variants.TURNS, {}, 'template_date', NOTE, '2021-02-03'),
    (STRIPS, {}, 'template_drops_reasoning', WARNING, 'leaves out what is before </think>'),
    (LAST, {}, 'template_place', NOTE, "writes '<think></think>answer"),
    (variants.TURNS, {'add_bos_token': True}, 'added_bos', NOTE, 'tokenizer.json puts nothing there'),
    (variants.TURNS, {'bos_processor': True, 'add_bos_token': False}, 'added_bos', NOTE, 'put no BOS before'),
  ],
)
def test_what_a_template_or_a_flag_does_is_found_by_the_doctor(tmp_path, turns, config, name, severity, seen):
  finding = examine(tmp_path, turns, **config)[name]
  assert finding.severity == severity
  assert seen in finding.seen


def test_a_plain_template_has_none_of_these_findings(tmp_path):
  assert examine(tmp_path).keys() <= {'pad_is_end'}


def test_control_tokens_and_added_text_are_counted(tmp_path):
  tokenizer = tokenization.Tokenizer.load(variants.byte_level(tmp_path, template=LAST + variants.GENERATION))
  given = [('Yes', 'No'), ('Yes <|im_end|>', 'No'), ('Yes</s>', 'No'), ('[INST]', 'No')]
  data = encoding.tokenize([rows.Example(USER, pair) for pair in given], tokenizer, encoding.Limits(64, 64, 384))
  found = {finding.name: finding for finding in examples.examine(data, tokenizer, vocab_size=384)}
  assert found['control_text'].seen.startswith('1 of 4')
  assert found['foreign_control_text'].seen.startswith('2 of 4')
  assert found['template_adds_text'].severity == NOTE
  assert found['template_adds_text'].seen.startswith('4 of 4')
  assert 'template_unused' not in found


def test_an_objective_that_compares_prompts_wants_a_few_of_them():
  assert declarations.examine_batch_size(objectives.dpo(), 1) == []
  assert declarations.examine_batch_size(objectives.kto(), 4) == []
  (finding,) = declarations.examine_batch_size(objectives.dpo() + 0.5 * objectives.kto(), 1)
  assert (finding.name, finding.severity) == ('small_coupled_batch', WARNING)
  assert 'kto' in finding.seen
  assert 'dpo' not in finding.seen
