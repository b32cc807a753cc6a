"""A language model as a judge: it reads both responses, and its next token names the better one."""

from collections.abc import Sequence
import os
import re
from typing import NamedTuple

import jax
import numpy as np

from alignjax import pretrained, stats
from alignjax.data.reading import rows
from alignjax.data.tokens import tokenization, variables
from alignjax.judges import base
from alignjax.models import checkpoint_io
from alignjax.parallel import rules
from alignjax.types import Array, Params, PreferenceBatch

MULTIPLE = 64  # prompts are padded to a multiple of this number of tokens, to limit compilations
TEMPLATE = """Which of two responses to an instruction is better?

Instruction:
{prompt}

Response A:
{a}

Response B:
{b}

Answer with A or B."""
_PLACES = re.compile(r'\{(prompt|a|b)\}')
_ANSWERS = ('A', 'B')


class _Question(NamedTuple):
  """The tokens of a question and of both answers to it."""

  prompt: Sequence[int]
  answers: Sequence[Sequence[int]]


class JudgeModel:
  """Asks a language model which response is better: P = sigmoid(log p(A | question) - log p(B | question)).

  It is a `judges.Compare`. A model with a chat template gets the question as the user's message. Without one, the text
  of the question continues with 'Answer:'.

  Args:
    loaded: a language model. All processes that share its mesh must judge the same pairs together.
    template: the question, with the places {prompt}, {a} and {b}.
    batch_size: questions that are asked at once; rounded up to a multiple of the devices that share a batch.

  Raises:
    ValueError: the template lacks a place.
  """

  collective = True  # all processes compute it together

  def __init__(self, loaded: pretrained.Pretrained, *, template: str = TEMPLATE, batch_size: int = 8):
    missing = {'prompt', 'a', 'b'} - set(_PLACES.findall(template))
    if missing:
      raise ValueError(f'judge: the template lacks {{{min(missing)}}}; it needs {{prompt}}, {{a}} and {{b}}')
    self._loaded, self._template, self._rows = loaded, template, loaded.rows(batch_size)
    self.fingerprint = loaded.fingerprint
    model = loaded.model

    @jax.jit
    def log_odds(params: Params, batch: PreferenceBatch) -> Array:
      inputs = (batch.prompt, batch.prompt_length, batch.response, batch.response_length)
      hidden = stats.HiddenStates(model.hidden(params, *inputs), model.head(params))
      answers = stats.statistics({stats.logp}, hidden, None, batch, chunk=1024).sum(stats.logp)
      return answers[:, 0] - answers[:, 1]

    self._log_odds = log_odds

  @classmethod
  def load(
    cls,
    folder: str | os.PathLike[str],
    *,
    template: str = TEMPLATE,
    template_arguments: str = '',
    batch_size: int = 8,
    compute_dtype: str = 'float32',
  ) -> 'JudgeModel':
    """Loads a model and its tokenizer from a Hugging Face folder. The weights keep the dtype of their file.

    Args:
      folder: a folder, or its name on the Hub.
      template: see the class.
      template_arguments: variables of its chat template, `name=value` or a JSON object; empty for none.
      batch_size: see the class.
      compute_dtype: type of activations, 'float32' or 'bfloat16'.

    Raises:
      ValueError: the folder, the template or its variables cannot be used.
    """
    arguments = variables.parse([template_arguments] if template_arguments else [])
    loaded = pretrained.load(folder, 'judge', compute_dtype=compute_dtype)
    loaded = loaded._replace(tokenizer=loaded.tokenizer.with_template_arguments(arguments))
    return cls(loaded, template=template, batch_size=batch_size)

  def __call__(self, pairs: Sequence[tuple[rows.Prompt, str, str]]) -> np.ndarray:
    """P(the first response is better), in this order alone, [n] float64.

    Raises:
      ValueError: a question cannot be encoded, or is too long for the model. The message gives the number of the pair.
    """
    questions = self._encode(pairs)
    sizes = [-(-len(each.prompt) // MULTIPLE) * MULTIPLE for each in questions]
    longest = max((len(answer) for each in questions for answer in each.answers), default=1)
    found = np.zeros(len(questions), np.float64)
    for size in sorted(set(sizes)):
      same = [i for i in range(len(questions)) if sizes[i] == size]
      for first in range(0, len(same), self._rows):
        chosen = same[first : first + self._rows]
        batch = self._batch([questions[i] for i in chosen], min(size, self._loaded.positions - longest), longest)
        placed = jax.device_put(batch, rules.batch_sharding(self._loaded.mesh))
        found[chosen] = checkpoint_io.on_host(self._log_odds(self._loaded.params, placed))[: len(chosen)]
    return np.exp(-np.logaddexp(0.0, -found))

  def _encode(self, pairs: Sequence[tuple[rows.Prompt, str, str]]) -> list[_Question]:
    tokenizer, positions = self._loaded.tokenizer, self._loaded.positions
    texts = [self._question(*pair) for pair in pairs]
    questions = []
    for number, result in enumerate(tokenizer.encode_all(texts)):
      if isinstance(result, tokenization.EncodingError):
        raise ValueError(f'pair {number} cannot be encoded for the judge: {result}') from result
      answers = [ids[:-1] for ids in result.responses]  # without the end token
      if not all(answers) or answers[0] == answers[1]:
        raise ValueError('the tokens of the answers A and B are not told apart by this tokenizer: use another model')
      tokenizer.check_ids([*result.prompt, *answers[0], *answers[1]], self._loaded.vocab_size, f'pair {number}')
      size = len(result.prompt) + max(map(len, answers))
      if size > positions:
        raise ValueError(
          f'pair {number}: the question has {size} tokens, and the judge reads {positions}: lower max_prompt or '
          'max_new_tokens, or use another judge'
        )
      questions.append(_Question(result.prompt, answers))
    return questions

  def _question(self, prompt: rows.Prompt, a: str, b: str) -> tuple[rows.Prompt, list[str]]:
    """The question about a pair, and both answers. Responses are inserted once, whatever places they spell."""
    values = {'prompt': _text(prompt), 'a': a.strip(), 'b': b.strip()}
    text = _PLACES.sub(lambda place: values[place[1]], self._template)
    if self._loaded.tokenizer.template is None:
      return f'{text}\n\nAnswer:', [f' {answer}' for answer in _ANSWERS]
    return [{'role': 'user', 'content': text}], list(_ANSWERS)

  def _batch(self, questions: Sequence[_Question], prompt_size: int, answer_size: int) -> PreferenceBatch:
    """Right-padded; rows after the last question repeat the first token of a prompt."""
    prompt, prompt_length = np.zeros((self._rows, prompt_size), np.int32), np.ones(self._rows, np.int32)
    answer, answer_length = np.zeros((self._rows, 2, answer_size), np.int32), np.ones((self._rows, 2), np.int32)
    for row, question in enumerate(questions):
      prompt_length[row] = len(question.prompt)
      prompt[row, : len(question.prompt)] = question.prompt
      for i, ids in enumerate(question.answers):
        answer_length[row, i] = len(ids)
        answer[row, i, : len(ids)] = ids
    ones = np.ones(self._rows, np.float32)
    return PreferenceBatch(prompt, prompt_length, answer, answer_length, label=ones, weight=ones)


def _text(prompt: rows.Prompt) -> str:
  """A prompt as text: itself, the only message of a user, or all messages with their roles."""
  if isinstance(prompt, str):
    return prompt.strip()
  messages = rows.messages_of(prompt)
  if len(messages) == 1:
    return rows.text_of(messages[0]).strip()
  return '\n\n'.join(f'{message["role"].capitalize()}: {rows.text_of(message).strip()}' for message in messages)


@base.factory
def judge(folder: str, template: str = '', template_arguments: str = '') -> base.Compare:
  """Asks a language model which response is better, and reads log p("A") - log p("B") as its next token.

  Args:
    folder: a language model: a folder, or a name on the Hub.
    template: the question, with the places {prompt}, {a} and {b}; empty for `judges.model.TEMPLATE`.
    template_arguments: variables of its chat template, such as 'enable_thinking=false', or a JSON object; empty for
      none. A model that thinks before it answers must not think here, because its next token is read.

  Raises:
    ValueError: the folder, the template or its variables cannot be used.
  """
  return JudgeModel.load(folder, template=template or TEMPLATE, template_arguments=template_arguments)
