"""Tests of `data_tokens`: every token of the first example is shown and marked correctly."""

import re

import pytest
from rich import console as rich_console
from tokenizers import decoders

from alignjax.commands import data_tokens
from alignjax.data.reading import rows
from alignjax.data.tokens import encoding, tokenization
from tests.data import variants


def shown(tokenizer, *given, **options):
  """What is printed for pairs, on a wide page without colours."""
  limits = encoding.Limits(**{'max_prompt': 2000, 'max_response': 2000, 'vocab_size': 384} | options)
  tokenized = encoding.tokenize(given, tokenizer, limits)
  console = rich_console.Console(width=10**6, color_system=None, highlight=False)
  with console.capture() as capture:
    data_tokens.show(tokenized, 0, tokenizer, console)
  return tokenized, capture.get()


@pytest.fixture(scope='module')
def tokenizer(tmp_path_factory):
  return tokenization.Tokenizer.load(variants.byte_level(tmp_path_factory.mktemp('tokens') / 'model'))


def ids_after(text, heading):
  """The ids that stand in a section, and how each is marked."""
  section = re.search(rf'\n{heading}, (\d+) tokens[^\n]*\n(.*?)(\n\n|\Z)', text, re.DOTALL)
  tokens = re.findall(r'(\S+)/(\d+)([\]>]?)(?=\s|\Z)', section[2])
  assert len(tokens) == int(section[1])
  return [int(i) for _, i, _ in tokens], ''.join(
    token[0] if mark or token[0] == '^' else ' ' for token, _, mark in tokens
  )


def test_every_token_stands_with_its_id_and_what_becomes_of_it(tokenizer):
  prompt = [{'role': 'user', 'content': 'Tell me.\n\nNow'}]
  tokenized, text = shown(
    tokenizer, rows.Example(prompt, ('The film', 'I love it\n'), label=0.75, path='[b]p', line=100)
  )
  assert text.startswith('first example, [b]p:100: label 0.75, weight 1\n')
  ids, marks = ids_after(text, 'prompt')
  assert ids == tokenized.prompt_tokens.tolist()
  assert marks == '^' + ' ' * (len(ids) - 1)  # <|im_start|> is BOS in front, and not where a turn starts
  assert text.count('\n<|im_start|>/1 ') == 1  # a line of text is a line here
  for name, response in zip(('chosen', 'rejected'), tokenized[0].responses, strict=True):
    ids, marks = ids_after(text, name)
    assert ids == response.tolist()
    assert marks == '[' * (len(ids) - 1) + '<'


def test_a_response_that_was_cut_is_said_to_have_no_end(tokenizer):
  pair = rows.Example('Once', (' The film was wonderful', ' a'))
  _, text = shown(tokenizer, pair, max_response=3, truncate_response=True)
  assert '\nchosen, 3 tokens, cut: no end token\n' in text
  assert '<' not in ids_after(text, 'chosen')[1]
  assert re.search(r'\nrejected, \d tokens\n', text)


def test_a_second_bos_is_seen(tokenizer):
  _, text = shown(tokenizer, rows.Example('<|im_start|><|im_start|>Once', (' a', ' b')))
  assert text.count('^<|im_start|>/1 ') == 2


def test_numbers_of_the_pair_and_other_counts_of_responses(tokenizer):
  pair = rows.Example('Once', (' a', ' b', ' c'), weight=0.5, score=(3.0, 1.0, 0.25), behaviour_logp=(-1.0, -2.0, -3.0))
  _, text = shown(tokenizer, pair)
  assert 'label 1, weight 0.5, score 3, 1, 0.25, behaviour_logp -1, -2, -3\n' in text
  assert [line.split(',')[0] for line in text.splitlines() if 'tokens' in line] == [
    'prompt',
    *(f'response {i}' for i in (1, 2, 3)),
  ]


def test_the_middle_of_a_long_text_is_left_out(tokenizer):
  tokenized, text = shown(tokenizer, rows.Example('Once ' * 600, (' a', ' b')))
  left_out = tokenized.prompt_length[0] - data_tokens.SHOWN
  assert text.count(f'... {left_out} tokens ...') == 1
  prompt = text[: text.index('\nchosen')].partition('\nprompt')[2]
  assert [int(i) for i in re.findall(r'/(\d+)', prompt)] == [
    *tokenized.prompt_tokens[: data_tokens.SHOWN // 2],
    *tokenized.prompt_tokens[-data_tokens.SHOWN // 2 :],
  ]


def test_spaces_line_ends_and_control_characters_are_visible(tokenizer):
  ids = tokenizer.encode_prompt('The  film\n\n\twas\r\x1b[31m')
  assert ''.join(data_tokens.spell(ids, tokenizer)) == r'The··film↵↵→was\r\x1b[31m'


def test_parts_of_characters_are_spelt_as_the_tokenizer_spells_them(tokenizer):
  ids = tokenizer.encode_prompt('é')
  assert len(ids) == 2
  assert data_tokens.spell(ids, tokenizer) == [tokenizer.backend.id_to_token(i) for i in ids]


def test_the_space_that_a_decoder_takes_from_the_start_is_shown(tmp_path):
  folder = variants.sentencepiece_style(tmp_path)
  tokenizer = tokenization.Tokenizer.load(folder)
  tokenizer.backend.decoder = decoders.Metaspace()
  ids = tokenizer.encode_prompt('The film was')
  assert tokenizer.decode(ids[1:2]) == 'The'
  assert data_tokens.spell(ids, tokenizer) == ['<s>', '·The', '·film', '·was']
