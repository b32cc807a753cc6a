"""The language model interface that the rest of the library uses."""

from collections.abc import Callable
from typing import Any, NamedTuple

from alignjax.types import Array, Head, PackedRows, Params

Constrain = Callable[[Any, tuple[str | None, ...] | None], Any]
"""(array, a logical axis name or None for each dimension) -> the array with its sharding constrained.

(the parameters of a layer, None) -> each of them, and so its gradient, constrained to its own sharding.
"""


class LanguageModel(NamedTuple):
  """A causal language model as pure functions over a nested dict of arrays.

  init(key) -> params
  hidden(params, prompt [B, P], prompt_length [B], response [B, N, R], response_length [B, N]) -> [B, N, R, D]
      The hidden state that predicts each response token: entry 0 comes from the last prompt token, entry t from
      response token t - 1. The prompt is encoded once for all N responses. Entries at padding are finite but otherwise
      undefined.
  head(params) -> Head
  lay_out(params) -> weights
      The parameters as decoding reads them. `head`, `prefill` and `decode` take either; a loop should get weights that
      are laid out before it.
  prefill(params, prompt [B, P], prompt_length [B], samples=N, max_new_tokens=R) -> cache
      Encodes all but the last prompt token of each row, once for all N samples.
  decode(params, cache, token [B, N]) -> (cache, hidden [B, N, D])
      Feeds one token to each sample. The first token to feed is the last prompt token, so step t of `decode` returns
      entry t of `hidden`.
  packed(params, rows, read [S, W]) -> [S, W, D]
      The hidden states of packed rows at the positions `read`; None if the model cannot read packed rows.
  constrained(constrain) -> LanguageModel
      The same model with its activations sharded by `constrain`, as in `transformer.build`; None if it shards none.
  """

  config: Any
  init: Callable[[Array], Params]
  hidden: Callable[[Params, Array, Array, Array, Array], Array]
  head: Callable[[Params], Head]
  prefill: Callable[..., Any]
  decode: Callable[[Params, Any, Array], tuple[Any, Array]]
  lay_out: Callable[[Params], Params] = lambda params: params
  packed: Callable[[Params, PackedRows, Array], Array] | None = None
  constrained: Callable[[Constrain], 'LanguageModel'] | None = None
