"""One row of each data form, for its section in docs/reference/forms.md."""

from collections.abc import Mapping
from typing import Any

_QUESTION = [{'role': 'user', 'content': 'Name a prime above 10.'}]
_HUMAN = '\n\nHuman: Name a prime above 10.\n\nAssistant:'

ROWS: Mapping[str, Mapping[str, Any]] = {
  'preference': {'prompt': _QUESTION, 'chosen': '11 is a prime.', 'rejected': '12 is a prime.', 'label': 0.9},
  'unpaired': {'prompt': _QUESTION, 'completion': '11 is a prime.', 'label': True},
  'ranked': {'prompt': _QUESTION, 'responses': ['11 is a prime.', 'Try 11.', '12 is a prime.']},
  'scored': {'prompt': _QUESTION, 'responses': ['12 is a prime.', '11 is a prime.'], 'scores': [0.0, 1.0]},
  'scored_pair': {
    'prompt': _QUESTION,
    'responses': ['Try 11.', '12 is a prime.', '11 is a prime.'],
    'scores': [0.8, 0.0, 1.0],
  },
  'prompts': {'prompt': _QUESTION},
  'conversation': {
    'messages': [
      *_QUESTION,
      {'role': 'assistant', 'content': '11 is a prime.'},
      {'role': 'user', 'content': 'And another one?'},
      {'role': 'assistant', 'content': '13.'},
    ]
  },
  'supervised': {'prompt': _QUESTION, 'completion': '11 is a prime.'},
  'text': {'text': 'The primes above 10 are 11, 13, 17 and so on.'},
  'chosen': {'prompt': _QUESTION, 'chosen': '11 is a prime.', 'rejected': '12 is a prime.'},
  'alpaca': {'instruction': 'Name a prime above the number.', 'input': '10', 'output': '11 is a prime.'},
  'hh': {'chosen': f'{_HUMAN} 11 is a prime.', 'rejected': f'{_HUMAN} 12 is a prime.'},
  'hh_text': {'chosen': f'{_HUMAN} 11 is a prime.', 'rejected': f'{_HUMAN} 12 is a prime.'},
  'ultrafeedback': {
    'instruction': 'Name a prime above 10.',
    'completions': [
      {'response': '12 is a prime.', 'overall_score': 1.0},
      {'response': '11 is a prime.', 'overall_score': 9.0},
    ],
  },
  'ultrafeedback_pair': {
    'instruction': 'Name a prime above 10.',
    'completions': [
      {'response': '12 is a prime.', 'overall_score': 1.0},
      {'response': 'Try 11.', 'overall_score': 7.0},
      {'response': '11 is a prime.', 'overall_score': 9.0},
    ],
  },
  'binarised': {
    'prompt': 'Name a prime above 10.',
    'chosen': [*_QUESTION, {'role': 'assistant', 'content': '11 is a prime.'}],
    'rejected': [*_QUESTION, {'role': 'assistant', 'content': '12 is a prime.'}],
    'score_chosen': 9.0,
    'score_rejected': 1.0,
  },
  'tldr': {
    'info': {'post': 'I looked for a prime above 10 and found 11.', 'title': 'A prime', 'subreddit': 'math'},
    'summaries': [{'text': 'Found nothing.'}, {'text': 'Found the prime 11.'}],
    'choice': 1,
  },
  'nectar': {
    'prompt': f'{_HUMAN} ',
    'answers': [{'answer': '12 is a prime.', 'rank': 2.0}, {'answer': '11 is a prime.', 'rank': 1.0}],
  },
  'nectar_pair': {
    'prompt': f'{_HUMAN} ',
    'answers': [
      {'answer': '12 is a prime.', 'rank': 3.0},
      {'answer': 'Try 11.', 'rank': 2.0},
      {'answer': '11 is a prime.', 'rank': 1.0},
    ],
  },
  'helpsteer': {
    'context': _QUESTION,
    'response1': '12 is a prime.',
    'response2': '11 is a prime.',
    'overall_preference': 2,
  },
  'shp': {
    'history': 'Name a prime above 10.',
    'human_ref_A': '11 is a prime.',
    'human_ref_B': '12 is a prime.',
    'labels': 1,
    'score_A': 20,
    'score_B': 3,
  },
  'pku': {
    'prompt': 'Name a prime above 10.',
    'response_0': '12 is a prime.',
    'response_1': '11 is a prime.',
    'better_response_id': 1,
  },
}
