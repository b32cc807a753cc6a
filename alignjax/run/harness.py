"""A model of alignjax in lm-evaluation-harness, `--model alignjax`: an extra, pip install 'alignjax[lm-eval]'.

  python -m alignjax.run.harness run --model alignjax --model_args pretrained=runs/dpo/model --tasks gsm8k

lm-eval after 0.4.13 finds the model by itself, and `lm-eval run --model alignjax ...` does the same. Arguments:
`pretrained`, the folder of a model or its name on the Hub; `dtype`, float32 or bfloat16; `max_length` in tokens.
"""

from collections.abc import Sequence
from typing import Any

from alignjax.evaluation import harness

try:
  from lm_eval import __main__ as command
  from lm_eval.api import instance, registry
  from lm_eval.api import model as interface
except ImportError as error:
  raise ImportError("the model for lm-eval needs it: pip install 'alignjax[lm-eval]'") from error

MAX_TOKENS = 256  # of a response, if the task sets no limit, as in the Hugging Face backend
_LIMITS = ('max_gen_toks', 'max_new_tokens', 'max_tokens', 'max_completion_tokens')


@registry.register_model('alignjax')
class HarnessModel(interface.LM):
  """A language model on the devices of this process.

  Args:
    pretrained: the folder of a model, or its name on the Hub.
    dtype: type of activations, 'float32' or 'bfloat16'; 'auto' for float32.
    max_length: largest number of tokens that the model reads; None for its own limit.
    batch_size: texts that are computed at once.
    seed: seed of sampled responses.
    **ignored: settings of torch, such as `device`.
  """

  def __init__(
    self,
    pretrained: str,
    dtype: str = 'float32',
    max_length: int | None = None,
    batch_size: int | str = 8,
    seed: int = 0,
    **ignored: Any,
  ):
    super().__init__()
    del ignored
    size = int(batch_size) if str(batch_size).isdecimal() else 8
    self._name, self._seed = pretrained, seed
    self._model = harness.TextModel.load(
      pretrained,
      batch_size=size,
      max_length=max_length or 0,
      compute_dtype='float32' if dtype == 'auto' else dtype,
    )

  def loglikelihood(
    self, requests: Sequence[instance.Instance], disable_tqdm: bool = False
  ) -> list[tuple[float, bool]]:
    """log p(continuation | context) in nats for each request, and whether it is the greedy continuation."""
    del disable_tqdm
    return self._model.loglikelihood([request.args for request in requests])

  def loglikelihood_rolling(self, requests: Sequence[instance.Instance], disable_tqdm: bool = False) -> list[float]:
    """log p(text) in nats for each request."""
    del disable_tqdm
    return self._model.loglikelihood_rolling([request.args[0] for request in requests])

  def generate_until(self, requests: Sequence[instance.Instance], disable_tqdm: bool = False) -> list[str]:
    """The text that follows the context of each request, up to a stop sequence."""
    del disable_tqdm
    asked = [(request.args[0], generation(request.args[1], self._seed)) for request in requests]
    found = [''] * len(asked)
    for kind in dict.fromkeys(each for _, each in asked):
      places = [i for i, (_, each) in enumerate(asked) if each == kind]
      for place, text in zip(places, self._model.generate([asked[i][0] for i in places], kind), strict=True):
        found[place] = text
    return found

  def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
    """The text of messages by the chat template of the model."""
    if not add_generation_prompt:
      raise NotImplementedError('--model alignjax cannot continue a message of the assistant')
    return self._model.render(chat_history)

  @property
  def tokenizer_name(self) -> str:
    """Identifies the tokenizer and the chat template in caches of requests."""
    return self._name.replace('/', '__')


def generation(arguments: dict[str, Any], seed: int) -> harness.Generation:
  """Converts the generation arguments of a request.

  Args:
    arguments: the arguments set by the task: `until`, a token limit, `do_sample`, `temperature`, `top_k` and `top_p`.
    seed: seed of the draws.
  """
  until = arguments.get('until') or ()
  sampled = arguments.get('do_sample', float(arguments.get('temperature', 0.0)) > 0)
  return harness.Generation(
    until=(until,) if isinstance(until, str) else tuple(until),
    max_tokens=int(next((arguments[name] for name in _LIMITS if arguments.get(name) is not None), MAX_TOKENS)),
    temperature=float(arguments.get('temperature', 1.0)) if sampled else 0.0,
    top_k=int(arguments.get('top_k') or 0) if sampled else 0,
    top_p=float(arguments.get('top_p', 1.0)) if sampled else 1.0,
    seed=seed,
  )


if __name__ == '__main__':
  command.cli_evaluate()
