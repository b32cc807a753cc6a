"""A valid row of every form; those of public data sets with all the columns that are published."""

USER = {'role': 'user', 'content': 'Hi'}
HELLO = {'role': 'assistant', 'content': 'Hello'}
GO = {'role': 'assistant', 'content': 'Go away'}
UNPAIRED = {'prompt': 'Once', 'completion': ' upon', 'label': True}
RANKED = {'prompt': 'Once', 'responses': [' upon', ' a', ' time']}
SCORED = {'prompt': 'Once', 'responses': [' a', ' b', ' c', ' d'], 'scores': [1, 3.5, -2, 3.5]}
START = '\n\nHuman: Hi there\n\nAssistant: Hello.\n\nHuman: Why?'
HH = {'chosen': START + '\n\nAssistant: Because\n\nof you.  ', 'rejected': START + '\n\nAssistant: No.'}


def completion(response, score):
  return {
    'model': 'some-7b',
    'principle': 'helpfulness',
    'custom_system_prompt': 'Be helpful.',
    'response': response,
    'annotations': {'honesty': {'Rating': '3', 'Rationale': '...'}},
    'critique': 'Good.',
    'overall_score': score,
    'fine-grained_score': 4.25,
  }


ULTRAFEEDBACK = {
  'source': 'evol_instruct',
  'instruction': 'Name a colour.',
  'models': ['some-7b', 'other-7b', 'third-7b', 'fourth-7b'],
  'completions': [completion('Red', 6.5), completion('No', 1), completion('Blue, of course', 9), completion('4', 1)],
  'correct_answers': [],
  'incorrect_answers': [],
}
CONVERSATION = [{'role': 'system', 'content': 'Be kind'}, {'role': 'user', 'content': 'Hi'}]
BINARISED = {
  'prompt': 'Hi',
  'prompt_id': '0a1b',
  'chosen': [*CONVERSATION, {'role': 'assistant', 'content': 'Hello'}],
  'rejected': [*CONVERSATION, {'role': 'assistant', 'content': 'Go away'}],
  'messages': [*CONVERSATION, {'role': 'assistant', 'content': 'Hello'}],
  'score_chosen': 8.5,
  'score_rejected': 3,
}
TLDR = {
  'info': {
    'id': 't3_1',
    'post': 'My cat sits. \nWhy?',
    'title': 'Cats',
    'subreddit': 'AskReddit',
    'site': None,
    'article': None,
  },
  'summaries': [
    {'text': ' Cat sits.', 'policy': 'sup2', 'note': 'ok'},
    {'text': ' Why does my cat sit?', 'policy': 'ref', 'note': None},
  ],
  'choice': 1,
  'worker': 'w',
  'batch': 'batch3',
  'split': 'train',
  'extra': {'confidence': None},
}
PREFERENCE = [
  {'prompt': 'Once', 'chosen': ' upon', 'rejected': ' a'},
  {'prompt': [USER], 'chosen': 'Hello', 'rejected': [GO], 'label': 0.75, 'weight': 2},
  {'prompt': 'Once', 'chosen': ' upon', 'rejected': ' a', 'score': [1, -0.5], 'behaviour_logp': [-1.5, 0]},
  {'prompt': 'Once', 'chosen': ' upon', 'rejected': ' a', 'behaviour_logp': [[-1.5, -0.5], [-1, 0, -2]]},
  {'prompt': 'Once', 'chosen': ' upon', 'rejected': ' a', 'margin': 1.5},
  {'chosen': [USER, HELLO], 'rejected': [USER, GO]},
]
TOOLS = [{'type': 'function', 'function': {'name': 'look', 'parameters': {'type': 'object', 'default': None}}}]
CALL = {'role': 'assistant', 'content': None, 'tool_calls': [{'function': {'name': 'look', 'arguments': {'at': 'it'}}}]}
PREFERENCE += [
  {
    'user': 'Hi',
    'system': 'Be kind',
    'chosen': 'Hello',
    'rejected': 'Go away',
    'chat_template_kwargs': {'think': False},
  },
  {'prompt': [USER, CALL, {'role': 'tool', 'content': 'x'}], 'tools': TOOLS, 'chosen': [CALL], 'rejected': GO},
  {
    'prompt': [{'from': 'human', 'value': 'Hi'}, {'from': 'gpt', 'value': 'Hel'}],
    'chosen': 'lo',
    'rejected': {'role': 'assistant', 'content': [{'type': 'text', 'text': 'ium'}]},
  },
]
NECTAR = {
  'prompt': '\n\nHuman: Hi\n\nAssistant: ',
  'answers': [{'answer': x, 'model': 'm', 'rank': i} for i, x in enumerate(('Hello', 'Hey', 'Go', 'No'), start=1)],
  'turns': 1,
  'num_responses': 4,
  'source': ['x'],
  'good_natured': True,
}
HELPSTEER = {
  'domain': 'general',
  'language': 'english',
  'context': [USER],
  'response1': 'Go away',
  'response2': 'Hello',
  'overall_preference': 2,
  'individual_preference': [{'score': 2, 'reasoning': 'x'}],
}
SHP = {'history': 'Why?', 'human_ref_A': 'No.', 'human_ref_B': 'Because.', 'labels': 0, 'score_A': 2, 'score_B': 9} | {
  'post_id': 'x',
  'domain': 'askacademia_train',
  'upvote_ratio': 0.9,
  'c_root_id_A': 'a',
  'c_root_id_B': 'b',
  'created_at_utc_A': 1,
  'created_at_utc_B': 2,
  'seconds_difference': 1.0,
  'score_ratio': 4.5,
}
PKU = {
  'prompt': 'Hi',
  'response_0': 'Go away',
  'response_1': 'Hello',
  'is_response_0_safe': False,
  'is_response_1_safe': True,
  'better_response_id': 1,
  'safer_response_id': 1,
}
ALPACA = {'instruction': 'Name a colour.', 'input': '', 'output': 'Red', 'text': 'Below is ...'}
VALID = {
  'conversation': [
    {'messages': [USER, HELLO], 'prompt': 'Hi', 'prompt_id': 'x'},
    {'conversations': [{'from': 'human', 'value': 'Hi'}, {'from': 'gpt', 'value': 'Hello'}], 'system': 'Be kind'},
  ],
  'supervised': [{'prompt': 'Once', 'completion': ' upon'}, {'prompt': [USER], 'completion': [HELLO]}],
  'text': [{'text': 'Once upon', 'weight': 2}],
  'chosen': [
    {'prompt': [USER], 'chosen': 'Hello', 'rejected': 'Go away'},
    {'chosen': [USER, HELLO], 'rejected': [USER, GO], 'label': 0.25},
    BINARISED,
  ],
  'alpaca': [ALPACA, ALPACA | {'input': 'Not red.', 'system': 'Be kind', 'weight': 1}],
  'nectar': [NECTAR],
  'nectar_pair': [NECTAR],
  'helpsteer': [HELPSTEER],
  'shp': [SHP],
  'pku': [PKU],
  'preference': PREFERENCE,
  'unpaired': [UNPAIRED, {'prompt': [USER], 'completion': [HELLO], 'label': 0.25, 'weight': 0}],
  'ranked': [RANKED, {'prompt': [USER], 'responses': ['Hello', [GO]], 'weight': 2}],
  'scored': [SCORED, SCORED | {'behaviour_logp': [-1, -2, -3, -4.5]}],
  'scored_pair': [SCORED, {'prompt': [USER], 'responses': ['Hello', [GO]], 'scores': [0, 1], 'weight': 0.5}],
  'prompts': [{'prompt': 'Once', 'weight': 2}, {'prompt': [USER]}, *PREFERENCE[:2]],
  'hh': [HH],
  'hh_text': [HH],
  'ultrafeedback': [ULTRAFEEDBACK],
  'ultrafeedback_pair': [ULTRAFEEDBACK],
  'binarised': [BINARISED, {name: BINARISED[name] for name in ('chosen', 'rejected')}],
  'tldr': [TLDR],
}
