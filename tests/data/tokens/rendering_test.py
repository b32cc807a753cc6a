"""Tests of `rendering`: what a template leaves out is an error, what it adds is a note, and tools are shown."""

import pytest

from alignjax.data.reading import rows
from alignjax.data.tokens import rendering, tokenization
from tests.data import variants

ASK = [{'role': 'user', 'content': 'How warm is it?'}]
USER_TEXT = '<|im_start|>user\nHow warm is it?<|im_end|>\n'
START = '<|im_start|>assistant\n'
TOOLS = [{'type': 'function', 'function': {'name': 'weather', 'parameters': {'type': 'object'}}}]
CALL = {'id': 'c1', 'type': 'function', 'function': {'name': 'weather', 'arguments': {'city': 'Oslo "W"'}}}
CALLED = {'role': 'assistant', 'content': None, 'tool_calls': [CALL]}
RESULT = {'role': 'tool', 'tool_call_id': 'c1', 'content': '{"temp": 3}'}
THOUGHT = '<think>\nthree\n</think>\n\nIt is 3.'
# Shows everything. Reasoning is shown in the last turn only; it is a field, or a part of the content.
AGENT = (
  "{% if tools %}{{ 'T' + (tools | tojson) + '\\n' }}{% endif %}"
  '{% for m in messages %}'
  "{{ '<|im_start|>' + m.role + '\\n' }}"
  "{% set parts = m.content.split('</think>') %}{% set r = m.reasoning_content %}"
  "{% if parts | length > 1 %}{% set r = parts[0].split('<think>')[-1].strip('\\n') %}{% endif %}"
  "{% if loop.last and m.role == 'assistant' and not m.tool_calls and not add_generation_prompt %}"
  "{{ '<think>\\n' + (r or '') + '\\n</think>\\n\\n' }}{% endif %}"
  "{{ parts[-1].lstrip('\\n') }}"
  "{% for c in m.tool_calls %}{{ '<call>' + (c.function | tojson) + '</call>' }}{% endfor %}"
  "{{ '<|im_end|>\\n' }}{% endfor %}"
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}"
  "{% if thinking is defined and not thinking %}{{ '<think>\\n\\n</think>\\n\\n' }}{% endif %}{% endif %}"
)
STRIPS = (  # drops what is before </think> in every turn
  "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' + m['content'].split('</think>')[-1].lstrip()"
  " + '<|im_end|>\\n' }}{% endfor %}" + variants.GENERATION
)


@pytest.fixture(scope='module')
def load(tmp_path_factory):
  def load(template):
    if template not in found:
      folder = variants.byte_level(tmp_path_factory.mktemp('model'), template=template)
      found[template] = tokenization.Tokenizer.load(folder)
    return found[template]

  found = {}
  return load


def trained(tokenizer, prompt, *responses):
  """The texts of what is given and of what is trained, and the notes."""
  encoded = tokenizer.encode(prompt, responses)
  given, *answers = (tokenizer.decode(ids, skip_special_tokens=False) for ids in (encoded.prompt, *encoded.responses))
  return given, answers, dict(encoded.notes)


def refusal(tokenizer, prompt, *responses):
  with pytest.raises(rendering.EncodingError) as caught:
    tokenizer.encode(prompt, responses)
  return caught.value.reason, str(caught.value)


# --- the response


@pytest.mark.parametrize('response', [THOUGHT, '\n' + THOUGHT + '  \n'])
def test_a_part_of_the_response_that_the_template_drops_is_an_error(load, response):
  reason, message = refusal(load(STRIPS), ASK, 'It is 4.', response)
  assert reason == 'template_changes_response'
  assert message.startswith("field 'rejected': the chat template leaves out '<think>'")
  _, answers, notes = trained(load(None), ASK, THOUGHT, 'It is 4.')  # ChatML keeps it
  assert answers == [THOUGHT + '<|im_end|>', 'It is 4.<|im_end|>']
  assert notes == {}


def test_reasoning_that_the_generation_prompt_opens_is_not_lost_silently(load):
  opened = STRIPS.replace('assistant\\n', 'assistant\\n<think>\\n')
  assert refusal(load(opened), ASK, 'three\n</think>\n\n3')[0] == 'template_changes_response'


def test_a_template_that_cuts_or_rewrites_the_response_is_an_error(load):
  cuts = variants.TURNS.replace("m['content']", "m['content'][:8]") + variants.GENERATION
  assert refusal(load(cuts), [{'role': 'user', 'content': 'Hi'}], 'It is 3 degrees.')[0] == 'template_changes_response'
  spaced = variants.TURNS.replace("m['content']", "m['content'].replace('. ', '.\\n')") + variants.GENERATION
  _, (answer,), notes = trained(load(spaced), ASK, 'Yes. No.')
  assert answer == 'Yes.\nNo.<|im_end|>'
  assert list(notes) == ['template_changes_space']


def test_what_a_template_adds_to_every_response_is_noted_and_an_argument_moves_it_into_the_prompt(load):
  given, (answer,), notes = trained(load(AGENT), ASK, 'It is 3.')
  assert given == USER_TEXT + START
  assert answer == '<think>\n\n</think>\n\nIt is 3.<|im_end|>'
  assert "'<think>\\n\\n</think>'" in notes['template_adds_text']
  given, (answer,), notes = trained(load(AGENT), rows.Dialogue(ASK, {'thinking': False}), 'It is 3.')
  assert given == USER_TEXT + START + '<think>\n\n</think>\n\n'
  assert answer == 'It is 3.<|im_end|>'
  assert notes == {}


def test_reasoning_content_is_trained_where_the_template_shows_it_and_refused_elsewhere(load):
  response = {'role': 'assistant', 'content': 'It is 3.', 'reasoning_content': 'three'}
  _, (answer, _), notes = trained(load(AGENT), ASK, response, 'No.')
  assert answer == THOUGHT + '<|im_end|>'
  assert notes.keys() == {'template_adds_text'}  # of the other response
  reason, message = refusal(load(None), ASK, response, 'No.')
  assert (reason, "field 'chosen'" in message, "'three'" in message) == ('template_changes_response', True, True)


def test_reasoning_of_earlier_turns_may_be_dropped(load):
  talk = [*ASK, {'role': 'assistant', 'content': THOUGHT}, *ASK]
  given, (answer,), _ = trained(load(AGENT), talk, THOUGHT)
  assert given == f'{USER_TEXT}{START}It is 3.<|im_end|>\n{USER_TEXT}{START}'
  assert answer == THOUGHT + '<|im_end|>'


def test_a_response_continues_a_prompt_that_ends_with_the_start_of_the_answer(load):
  prompt = [*ASK, {'role': 'assistant', 'content': '{"temp":'}]
  given, answers, notes = trained(load(None), prompt, ' 3}', ' 4}')
  assert given == USER_TEXT + START + '{"temp":'
  assert answers == [' 3}<|im_end|>', ' 4}<|im_end|>']
  assert list(notes) == ['prefilled']


# --- tools


def test_tools_calls_and_results_are_given_and_a_call_is_trained(load):
  prompt = rows.Dialogue([*ASK, CALLED, RESULT], {'tools': TOOLS})
  call = '<call>{"name": "weather", "arguments": {"city": "Oslo \\"W\\""}}</call><|im_end|>'
  listed = 'T[{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]\n'
  given, _, _ = trained(load(AGENT), prompt, 'It is 3.')
  result = '<|im_start|>tool\n{"temp": 3}<|im_end|>\n'
  assert given == f'{listed}{USER_TEXT}{START}{call}\n{result}{START}'
  given, (answer, other), notes = trained(
    load(AGENT),
    rows.Dialogue(ASK, {'tools': TOOLS}),
    CALLED,
    CALLED | {'tool_calls': [CALL | {'function': {'name': 'weather', 'arguments': '{"city": "Bergen"}'}}]},
  )
  assert given == listed + USER_TEXT + START
  assert answer == call
  assert 'Bergen' in other
  assert notes == {}
  assert (
    load(AGENT).encode_prompt(rows.Dialogue(ASK, {'tools': TOOLS}))
    == load(AGENT).encode(rows.Dialogue(ASK, {'tools': TOOLS}), ['x']).prompt
  )


@pytest.mark.parametrize(
  ('prompt', 'response', 'reason', 'field'),
  [
    (rows.Dialogue(ASK, {'tools': TOOLS}), 'x', 'template_hides', 'tools'),
    (rows.Dialogue(ASK, {'documents': [{'text': 'x'}]}), 'x', 'template_hides', 'documents'),
    ([*ASK, CALLED, RESULT], 'x', 'template_hides', 'prompt[1].tool_calls'),
    ([*ASK, CALLED | {'content': 'Let me see.'}, RESULT], 'x', 'template_hides', 'prompt[1].tool_calls'),
    (ASK, CALLED, 'template_changes_response', 'responses[0].tool_calls'),
    (ASK, CALLED | {'content': 'Let me see.'}, 'template_changes_response', 'responses[0].tool_calls'),
  ],
)
def test_what_a_template_cannot_show_is_an_error_of_the_row(load, prompt, response, reason, field):
  found, message = refusal(load(None), prompt, response)
  assert found == reason
  assert message.startswith(f"field '{field}': ")
  assert 'ignore' not in message


def test_a_message_that_the_template_skips_is_an_error_and_an_unshown_name_a_note(load):
  skips = "{% for m in messages if m.role != 'system' %}" + variants.TURNS.partition('%}')[2] + variants.GENERATION
  prompt = [{'role': 'system', 'content': 'Be kind'}, *ASK]
  assert refusal(load(skips), prompt, 'x') == ('template_hides', str(rendering._hidden('prompt[0].content')))
  trims = variants.TURNS.replace("m['content']", "(m['content'] | upper)") + variants.GENERATION
  assert load(trims).encode_prompt(prompt)  # changed, but shown
  _, _, notes = trained(load(None), [ASK[0] | {'name': 'Ann'}], 'x')
  assert list(notes) == ['name_not_shown']
