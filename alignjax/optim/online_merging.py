"""Online merging optimizers: every update is merged with the reference delta during training.

With D the update from the base optimizer (learning rate and sign included), tau = theta_SFT - theta_base the reference
delta, and R_p the reservation of a fraction p of a tensor's entries,

  theta <- theta + (1 - alpha) R_p(D) (+) alpha R_p(tau)

where R_p is random (DARE) or keeps the largest magnitudes (TIES), and (+) is a sum or elects a sign for each entry.
Chain these transforms after a base optimizer with its learning rate, and before weight decay:

  optax.chain(optax.adam(1e-6), online_dare(reserve=0.1, alpha=1e-7), optax.add_decayed_weights(-1e-8))

where -1e-8 is minus the learning rate times the decay rate. The decay applies to the old weights, as in `optax.adamw`;
the released code decays the merged weights. The learning rate scales D only: alpha R_p(tau) is added at every merge,
during warm-up too, and adds up to N alpha tau over N merges.

**Precision.** A single alpha tau is far below half an ulp of a weight, so plain addition would lose all of it. Each
parameter therefore has a float32 residual, the drift that has not been added yet: D is added exactly as the base
optimizer alone would add it, with the same rounding; then the residual and the new drift are added to the result, and
the rounding error becomes the next residual. Only contributions of tau are carried. With alpha = 0, updates pass
through bit for bit. The exact value of a weight is the weight plus its residual.

**Memory.** 4 bytes per parameter for the residual (none with `carry=False`), and another 4 for `every` > 1. tau is an
argument, not part of the state; it can have any float dtype and can live in host memory. Adam itself takes 8.

**Meshes.** Masks are functions of (seed, tensor, merge, position), so is the order of tied magnitudes, and thresholds
come from integer counts. All are the same for every sharding, and no tensor is gathered.

References:
  Lu et al. 2024, Online Merging Optimizers for Boosting Rewards and Mitigating Tax in Alignment,
  https://arxiv.org/abs/2405.17931, algorithms 1 and 2.
"""

from collections.abc import Mapping
import math
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from alignjax.optim import consensus, random_bits, top_fraction
from alignjax.optim import rule as rules
from alignjax.types import Array, Params

# Layers stacked on a leading axis are separate tensors. Layers numbered in the path are not stacked.
STACKED = r'(^|/)layers/(?!\d)'


class OnlineMergeState(NamedTuple):
  """The state of online merging, sufficient to resume a run.

  Trees of parameter size have the structure of the parameters, so that they are sharded alike. Cuts are a tuple in the
  order of the leaves.
  """

  count: Array  # [] int32, merges done
  step: Array  # [] int32, updates since the last merge
  key: Array  # [2] uint32
  residual: Params | None  # float32: drift lost to rounding so far
  cache: Params | None  # float32: displacement since the last merge, with every > 1
  cuts: tuple[tuple[top_fraction.Cut, top_fraction.Cut], ...]  # of D and of tau, with keep='largest'
  metrics: Mapping[str, Array]  # [] float32 each, from the last merge, for `merge_metrics`


def online_merge(
  reserve: float,
  alpha: float,
  *,
  keep: str = 'random',
  elect: str = 'none',
  mask: str = 'fresh',
  rescale: str = 'none',
  clip: float | None = None,
  every: int = 1,
  seed: int = 0,
  carry: bool = True,
  stacked: str = STACKED,
) -> optax.GradientTransformationExtraArgs:
  """Merges updates with the reference delta: any reservation combined with any election.

  theta <- theta + (1 - alpha) R(D) (+) alpha R(tau)

  `update(updates, state, params, *, reference_delta)` needs the parameters, and tau as a tree like them with any float
  dtype. With `every` = K, D is the displacement over K steps: the parameters follow the base optimizer for K - 1 steps;
  at the K-th step they return to their values after the last merge and move by the merged displacement. The return
  subtracts the displacement after rounding and is exact, unless the displacement is as large as the weight, where the
  last digit can differ. Weight decay later in the chain is kept.

  Args:
    reserve: fraction p of a tensor's entries to keep, in (0, 1]. May be a traced scalar under
      `optax.inject_hyperparams`; then its range is not checked, and with 'largest' p n is rounded to float32.
    alpha: weight of the reference delta, in [0, 1]. May be a traced scalar.
    keep: 'random' keeps each entry with probability p, independently for D and tau; 'largest' keeps exactly the
      max(1, int(p n)) entries of each tensor with the largest magnitude. Among equal magnitudes the seed, the tensor
      and the position decide, and for D also the merge.
    elect: 'none' adds; 'weighted' adds where (1 - alpha) D and alpha tau agree in sign and otherwise keeps the larger
      of the two (neither, if they cancel); 'raw' elects the sign of R(D) + R(tau), + for 0, and drops entries with the
      other sign.
    mask: 'fresh' draws the random mask of tau at every merge, 'fixed' once per run. The mask of D is always fresh.
    rescale: multiply the kept entries of D and tau by 1 ('none'), by 1 / p ('inverse', with 'random' only), or by the
      factor that restores the L1 norm of the tensor ('l1').
    clip: largest magnitude of an entry of tau after rescaling; None for no bound.
    every: K, steps between merges.
    seed: seed of the masks, and of the order among equal magnitudes.
    carry: carry the rounding error of tau in the residual. False uses plain addition, which saves memory but loses the
      drift at small alpha.
    stacked: a regular expression; in parameters whose path matches, the leading axis indexes separate tensors.

  Returns:
    A transform. In `optax.masked` it needs mask_compatible_extra_args=True; in `optax.MultiSteps` it merges once per
    accumulated step; `merge_metrics` reads its state.

  Raises:
    ValueError: an argument is out of range; at trace time, `reference_delta` is missing or does not fit.
  """
  rule = rules.Rule(reserve, alpha, keep, elect, mask, rescale, clip, every)

  def init(params: Params) -> OnlineMergeState:
    def zeros(wanted: bool) -> Params | None:
      return optax.tree.zeros_like(params, dtype=jnp.float32) if wanted else None

    # Every field gets its own array, because the state is donated to the training step and buffers cannot be shared.
    return OnlineMergeState(
      count=jnp.zeros((), jnp.int32),
      step=jnp.zeros((), jnp.int32),
      key=random_bits.key_words(seed),
      residual=zeros(carry),
      cache=zeros(every > 1),
      cuts=tuple(_no_cuts(*leaf, stacked) for leaf in _paths(params)) if keep == 'largest' else (),
      metrics={name: jnp.zeros(()) for name in consensus.METRICS},
    )

  def merged(updates: Params, state: OnlineMergeState, params: Params, delta: Params) -> tuple[Any, OnlineMergeState]:
    # The barrier materialises the update, because several kernels read it and each would recompute the base optimizer.
    # One barrier per tensor: a single one would hold all of them in memory at once.
    leaves = _leaves(jax.tree.map(jax.lax.optimization_barrier, updates), state, params, delta, stacked)
    reserved = [rule.reserve_of(leaf, state.key, state.count) for leaf in leaves]
    summands = [rule.summands(leaf, kept) for leaf, kept in zip(leaves, reserved, strict=True)]
    done = [rules.landed(leaf, term.part, term.drift) for leaf, term in zip(leaves, summands, strict=True)]
    sums = [rule.sums(leaf, kept) for leaf, kept in zip(leaves, reserved, strict=True)]
    rebuild = jax.tree.structure(updates).unflatten
    state = OnlineMergeState(
      count=optax.safe_increment(state.count),
      step=jnp.zeros((), jnp.int32),
      key=state.key,
      residual=None if state.residual is None else rebuild([residual for _, residual in done]),
      cache=None if state.cache is None else optax.tree.zeros_like(state.cache),
      cuts=tuple(kept.cuts for kept in reserved) if state.cuts else (),
      metrics=consensus.metrics(sums) if sums else state.metrics,
    )
    return rebuild([applied for applied, _ in done]), state

  def displaced(updates: Params, state: OnlineMergeState, params: Params) -> tuple[Any, OnlineMergeState]:
    def moved(cache: Array, param: Array, update: Array) -> Array:
      wide = param.astype(jnp.float32)
      return cache + (rules.rounded(wide + update.astype(jnp.float32), param.dtype) - wide)

    cache = jax.tree.map(moved, state.cache, params, updates)
    updates = jax.tree.map(lambda u, p: u.astype(jnp.promote_types(u.dtype, p.dtype)), updates, params)
    return updates, state._replace(step=state.step + 1, cache=cache)

  def update(
    updates: Params, state: OnlineMergeState, params: Params | None = None, *, reference_delta: Any = None, **extra: Any
  ) -> tuple[Params, OnlineMergeState]:
    del extra
    _check(params, reference_delta, stacked)
    if every == 1:
      return merged(updates, state, params, reference_delta)
    return jax.lax.cond(
      state.step >= every - 1,  # a resumed run may have lowered `every`
      lambda: merged(updates, state, params, reference_delta),
      lambda: displaced(updates, state, params),
    )

  return optax.GradientTransformationExtraArgs(init, update)


def online_dare(
  reserve: float,
  alpha: float,
  mask: str = 'fresh',
  rescale: str = 'none',
  every: int = 1,
  seed: int = 0,
  clip: float | None = None,
  carry: bool = True,
) -> optax.GradientTransformationExtraArgs:
  """OnDARE: random entries of the update plus random entries of the reference delta.

  theta <- theta + (1 - alpha) B D + alpha B' tau,   B, B' ~ Bernoulli(p) for each entry

  The defaults are the paper's form. The released code is `online_dare(p, alpha, mask='fixed', rescale='inverse',
  clip=1.0)`: it draws B' once, divides both terms by p and clips tau. Its mean update is therefore 1 / p times the
  paper's, and learning rates do not transfer. Its flag `rescale` matches the L1 norm of D instead of dividing by p;
  rescale='l1' does this for D and tau. Its `use_merge=False` is alpha = 0. Not implemented: its bound of 1 on D, which
  no update reaches, and its `online_step`, which updates only the first parameter between merges.

  Args and Raises: as for `online_merge`.

  References:
    Lu et al. 2024, https://arxiv.org/abs/2405.17931, algorithm 1; the released code,
    https://github.com/QwenLM/online_merging_optimizers.
    Yu et al. 2023, Language Models are Super Mario, https://arxiv.org/abs/2311.03099.
  """
  return online_merge(reserve, alpha, mask=mask, rescale=rescale, clip=clip, every=every, seed=seed, carry=carry)


def online_ties(
  reserve: float,
  alpha: float,
  elect: str = 'weighted',
  rescale: str = 'none',
  every: int = 1,
  carry: bool = True,
  seed: int = 0,
) -> optax.GradientTransformationExtraArgs:
  """OnTIES: the largest entries of the update and of the reference delta, with a sign elected for each entry.

  theta <- theta + (1 - alpha) Top_p(D) (+) alpha Top_p(tau)

  where a (+) b = a + b if their signs agree, otherwise the one with the larger magnitude, and 0 if they cancel. The
  defaults are the paper's form. The released code is `online_ties(p, alpha, elect='raw')`: it elects the sign of
  Top_p(D) + Top_p(tau), unweighted; because tau is about a thousand times larger than an update, it drops every entry
  of the update that disagrees with tau. Not implemented: the release keeps tensors with fewer than 1 / p entries whole
  (here one entry is kept), and its `online_step` updates only the first parameter between merges.

  Top_p keeps exactly k = max(1, int(p n)) of the n entries of a tensor, so the share kept is p rounded down to a
  multiple of 1 / n, but at least 1 / n. Equal magnitudes are common: Adam's first update has |D| = lr almost
  everywhere, Lion's updates always, and a bfloat16 tau has few distinct values. Ties are broken by a permutation of the
  positions that depends on the seed and the tensor, and for D also on the merge, so that no entry is favoured in the
  long run. The paper and the released code leave ties to the sorting algorithm.

  The threshold of D is searched at every merge, starting from the previous one; the threshold of tau is searched once.

  Args and Raises: as for `online_merge`.

  References:
    Lu et al. 2024, https://arxiv.org/abs/2405.17931, algorithm 1; the released code,
    https://github.com/QwenLM/online_merging_optimizers.
    Yadav et al. 2023, TIES-Merging, https://arxiv.org/abs/2306.01708.
  """
  return online_merge(reserve, alpha, keep='largest', elect=elect, rescale=rescale, every=every, seed=seed, carry=carry)


def merge_metrics(opt_state: optax.OptState) -> dict[str, Array]:
  """Metrics of the last merge, from the state of any optimizer that contains a transform of this module.

  `update_norm` and `merged_norm` are the norms of D and of the merged update; `kept` is the fraction of entries of D
  that the reservation kept and that are not 0; `vetoed` is the fraction of these that the election dropped;
  `cosine_with_update` and `cosine_with_delta` are cosines with the merged update. All are computed before rounding, and
  are 0 before the first merge.

  Returns:
    float32 scalars by name, with a number in front if there are several transforms (`1/kept`); {} if there is none.
  """
  nodes = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, OnlineMergeState))
  states = [node for node in nodes if isinstance(node, OnlineMergeState)]
  prefixes = [''] if len(states) == 1 else [f'{index}/' for index in range(len(states))]
  return {
    prefix + name: value
    for prefix, state in zip(prefixes, states, strict=True)
    for name, value in state.metrics.items()
  }


def _paths(params: Params) -> list[tuple[str, Array]]:
  leaves, _ = jax.tree_util.tree_flatten_with_path(params)
  return [(jax.tree_util.keystr(path, simple=True, separator='/'), leaf) for path, leaf in leaves]


def _is_stacked(path: str, leaf: Array, pattern: str) -> bool:
  return leaf.ndim > 1 and re.search(pattern, path) is not None


def _no_cuts(path: str, leaf: Array, pattern: str) -> tuple[top_fraction.Cut, top_fraction.Cut]:
  stacked = _is_stacked(path, leaf, pattern)
  return top_fraction.no_cut(leaf, stacked), top_fraction.no_cut(leaf, stacked)


def _leaves(updates: Params, state: OnlineMergeState, params: Params, delta: Params, pattern: str) -> list[rules.Leaf]:
  paths = _paths(params)
  nothing = [None] * len(paths)
  columns = (
    jax.tree.leaves(updates),
    [jax.device_put(leaf, jax.memory.Space.Device) for leaf in jax.tree.leaves(delta)],  # it may be in host memory
    nothing if state.residual is None else jax.tree.leaves(state.residual),
    nothing if state.cache is None else jax.tree.leaves(state.cache),
    state.cuts or nothing,
  )
  return [
    rules.Leaf(index, _is_stacked(path, param, pattern), param, *rest)
    for index, ((path, param), *rest) in enumerate(zip(paths, *columns, strict=True))
  ]


def _check(params: Params | None, delta: Any, pattern: str) -> None:
  if params is None:
    raise ValueError('online merging needs the parameters: call update(updates, state, params, reference_delta=...)')
  hint = (
    'pass Frozen(delta=theta_SFT - theta_base) to the training step, or call update(..., reference_delta=...) '
    'with a tree like the parameters; optax.masked needs mask_compatible_extra_args=True'
  )
  if delta is None:
    raise ValueError(f'online merging needs the reference delta: {hint}')
  if jax.tree.structure(delta) != jax.tree.structure(params):
    raise ValueError(f'the reference delta does not have the structure of the parameters: {hint}')
  for (path, param), leaf in zip(_paths(params), jax.tree.leaves(delta), strict=True):
    if param.shape != leaf.shape:
      raise ValueError(f'the reference delta of {path} has shape {leaf.shape}, the parameter {param.shape}: {hint}')
    size = math.prod(param.shape[1:]) if _is_stacked(path, param, pattern) else param.size
    if size >= top_fraction.COUNTED:
      raise ValueError(
        f'a tensor of {path}, {param.shape}, has {size} entries, and online merging counts up to 2^31 - 1: split it'
      )
