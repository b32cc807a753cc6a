"""The only interface through which the rest of the library sees a language model."""

from collections.abc import Callable
import dataclasses
from typing import Any, NamedTuple

import jax

from alignjax.types import Array, Head, Params


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Cache:
  """Keys and values of a prompt, stored once, and of the N responses under it, K key-value heads of width H.

  `index` is the number of tokens decoded so far.
  """

  prompt_key: Array  # [L, B, P, K, H]
  prompt_value: Array  # [L, B, P, K, H]
  prompt_length: Array  # [B] int32
  response_key: Array  # [L, B, N, R, K, H]
  response_value: Array  # [L, B, N, R, K, H]
  index: Array  # [] int32


class LanguageModel(NamedTuple):
  """A causal language model as pure functions over a nested dict of arrays.

  init(key) -> params
  hidden(params, prompt [B, P], prompt_length [B], response [B, N, R], response_length [B, N]) -> [B, N, R, D]
      The state that predicts each response token: entry 0 comes from the last prompt token, entry t from response token
      t - 1. The prompt is encoded once for all N responses. Entries at padding are finite and otherwise undefined.
  head(params) -> Head
  prefill(params, prompt [B, P], prompt_length [B], samples=N, max_new_tokens=R) -> cache
      Encodes all but the last prompt token of each row, once for its N samples.
  decode(params, cache, token [B, N]) -> (cache, hidden [B, N, D])
      Feeds one token to each sample. The first token fed is the last prompt token, so that `decode` mirrors `hidden`
      entry by entry.
  """

  config: Any
  init: Callable[[Array], Params]
  hidden: Callable[[Params, Array, Array, Array, Array], Array]
  head: Callable[[Params], Head]
  prefill: Callable[..., Any]
  decode: Callable[[Params, Any, Array], tuple[Any, Array]]
