"""Online merging optimizers: each finished update is merged with the reference delta while training goes on.

With D the update that the base optimizer has finished (learning rate and sign included), tau = theta_SFT - theta_base
the reference delta, and R_p the reservation of a share p of a tensor's entries,

  theta <- theta + (1 - alpha) R_p(D) (+) alpha R_p(tau)

where R_p is random (DARE) or keeps the largest magnitudes (TIES), and (+) is a sum, or elects a sign for each entry.
The transforms here stand after a base optimizer and its learning rate, and before weight decay:

  optax.chain(optax.adam(1e-6), online_dare(reserve=0.1, alpha=1e-7), optax.add_decayed_weights(-1e-8))

where -1e-8 is the decay times minus the learning rate. It falls on the old weights, as in `optax.adamw`; the released
code decays the merged ones. The learning rate
scales D alone: alpha R_p(tau) is added at every merge, in the warm-up too, and adds up to N alpha tau over N merges.

**Precision.** One alpha tau is far below half an ulp of a weight, and plain addition would lose all of it. So each
parameter has a residual, the drift that could not yet be added, in float32: D is added as the base optimizer alone
would have added it, with the same rounding; then the residual and the new drift are added to the result, and what
rounding loses of them is the next residual. Only what comes from tau is carried. Without tau (alpha = 0), an update
passes through bit for bit. What a weight stands for is the sum of itself and its residual.

**Memory.** 4 bytes a parameter for the residual (`carry=False` does without), as much again for `every` > 1, and
nothing else: tau is an argument, never part of the state, of any float dtype, and may live in the memory of the host.
Adam itself has 8.

**Meshes.** Masks are functions of (seed, tensor, merge, position), thresholds come from counts of integers: both are
the same for every sharding, and no tensor is gathered.

References:
  Lu et al. 2024, Online Merging Optimizers for Boosting Rewards and Mitigating Tax in Alignment,
  https://arxiv.org/abs/2405.17931, algorithms 1 and 2.
"""

from collections.abc import Mapping
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from alignjax.optim import consensus, random_bits, top_fraction
from alignjax.optim import rule as rules
from alignjax.types import Array, Params

# Layers that are stacked on a leading axis are separate tensors; layers that are numbered in the path are not stacked.
STACKED = r'(^|/)layers/(?!\d)'


class OnlineMergeState(NamedTuple):
  """Everything that a resumed run needs.

  Trees of the size of the parameters have their structure, so that they are sharded alike; thresholds are a tuple in
  the order of the leaves.
  """

  count: Array  # [] int32, merges done
  step: Array  # [] int32, updates since the last merge
  key: Array  # [2] uint32
  residual: Params | None  # float32: drift that rounding has not let in yet
  cache: Params | None  # float32: displacement since the last merge, with every > 1
  thresholds: tuple[tuple[Array, Array], ...]  # bits of the thresholds of D and of tau, with keep='largest'
  metrics: Mapping[str, Array]  # [] float32 each, of the last merge, for `merge_metrics`


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
  """Merges finished updates with the reference delta: any reservation with any election.

  theta <- theta + (1 - alpha) R(D) (+) alpha R(tau)

  `update(updates, state, params, *, reference_delta)` needs the parameters, and tau as a tree like them, of any float
  dtype. With `every` = K, D is the displacement of K steps: the parameters follow the base optimizer for K - 1 steps,
  and at the K-th go back to where they were after the last merge and from there by the merged displacement. What they
  go back by is the displacement after rounding, so they arrive exactly, except where the displacement is of the size of
  the weight and rounding shows in its last digit; decay that follows in the chain stays.

  Args:
    reserve: p, the share of the entries of a tensor that is kept, in (0, 1]. May be a traced scalar under
      `optax.inject_hyperparams`; then its range is not checked, and with 'largest' p n is rounded to float32.
    alpha: weight of the reference delta, in [0, 1]. May be a traced scalar.
    keep: 'random', each entry with probability p, independently for D and tau; or 'largest', the max(1, int(p n)) of
      largest magnitude of each tensor, and whatever ties with the smallest of them.
    elect: 'none' adds; 'weighted' adds where (1 - alpha) D and alpha tau have one sign, and keeps the larger of them
      elsewhere (nothing, if they cancel); 'raw' elects the sign of R(D) + R(tau), + for 0, and drops what has another.
    mask: with 'random', draw the mask of tau at every merge ('fresh') or once for the whole run ('fixed'). That of D is
      always fresh.
    rescale: what is kept of D and of tau is multiplied by 1 ('none'), 1 / p ('inverse', with 'random' only), or
      what restores the sum of magnitudes of the tensor ('l1').
    clip: the largest magnitude of an entry of tau after the rescaling; None for no bound.
    every: K, steps from merge to merge.
    seed: of the masks.
    carry: keep what rounding loses of tau. False adds plainly: less memory, but no drift at small alpha.
    stacked: a regular expression; where it is found in a parameter's path, the leading axis counts separate tensors.

  Returns:
    A transform. In `optax.masked` it needs mask_compatible_extra_args=True; in `optax.MultiSteps` it merges once for
    each accumulated step; `merge_metrics` reads its state.

  Raises:
    ValueError: for an argument out of range; at trace time if `reference_delta` is missing or does not fit.
  """
  rule = rules.Rule(reserve, alpha, keep, elect, mask, rescale, clip, every)

  def init(params: Params) -> OnlineMergeState:
    def zeros(wanted: bool) -> Params | None:
      return optax.tree.zeros_like(params, dtype=jnp.float32) if wanted else None

    # Each an array of its own: a state is donated to the training step, and no buffer can be donated twice.
    return OnlineMergeState(
      count=jnp.zeros((), jnp.int32),
      step=jnp.zeros((), jnp.int32),
      key=random_bits.key_words(seed),
      residual=zeros(carry),
      cache=zeros(every > 1),
      thresholds=tuple(_no_thresholds(*leaf, stacked) for leaf in _paths(params)) if keep == 'largest' else (),
      metrics={name: jnp.zeros(()) for name in consensus.METRICS},
    )

  def merged(updates: Params, state: OnlineMergeState, params: Params, delta: Params) -> tuple[Any, OnlineMergeState]:
    # Stored, for several kernels read it, and each would do the base optimizer's work again. Tensor by tensor: behind a
    # single barrier, all of them would be in memory at once.
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
      thresholds=tuple(kept.thresholds for kept in reserved) if state.thresholds else (),
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
    _check(params, reference_delta)
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
  clip=1.0)`: it draws B' once, divides both terms by p and bounds tau's. So its mean update is 1 / p times as large as
  the paper's, and learning rates do not transfer. Its flag `rescale` matches the L1 norm of D in place of 1 / p:
  rescale='l1' does so, for tau too. Its `use_merge=False` is alpha = 0. Left out: its bound of 1 on D, which no update
  reaches, and its `online_step`, which updates only the first parameter between merges.

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
) -> optax.GradientTransformationExtraArgs:
  """OnTIES: the largest entries of the update and of the reference delta, with an elected sign for each entry.

  theta <- theta + (1 - alpha) Top_p(D) (+) alpha Top_p(tau)

  where a (+) b = a + b if their signs agree, else the one of larger magnitude, and 0 if they cancel. The defaults are
  the paper's form. The released code is `online_ties(p, alpha, elect='raw')`: it elects the sign of Top_p(D) +
  Top_p(tau), unweighted, so that tau, a thousand times larger than an update, deletes every entry of the update that
  disagrees with it. Left out: that it leaves a tensor of fewer than 1 / p entries whole (here one entry is kept), and
  its `online_step`, which updates only the first parameter between merges.

  The threshold of D is found anew at every merge, beginning at the last one; that of tau once.

  Args and Raises: as for `online_merge`.

  References:
    Lu et al. 2024, https://arxiv.org/abs/2405.17931, algorithm 1; the released code,
    https://github.com/QwenLM/online_merging_optimizers.
    Yadav et al. 2023, TIES-Merging, https://arxiv.org/abs/2306.01708.
  """
  return online_merge(reserve, alpha, keep='largest', elect=elect, rescale=rescale, every=every, carry=carry)


def merge_metrics(opt_state: optax.OptState) -> dict[str, Array]:
  """What the last merge did, from the state of an optimizer in which a transform of this module stands anywhere.

  `update_norm` and `merged_norm`, of D and of what became of it; `kept`, the share of all entries of D that
  the reservation kept, and that are not 0; `vetoed`, the share of these that the election dropped; cosines of the
  merged update, `cosine_with_update` and `cosine_with_delta`. They are those of the last merge, before rounding, and 0
  before the first.

  Returns:
    float32 scalars by name; several transforms' are numbered, `1/kept`; {} where there is none.
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


def _no_thresholds(path: str, leaf: Array, pattern: str) -> tuple[Array, Array]:
  shape = top_fraction.threshold_shape(leaf, _is_stacked(path, leaf, pattern))
  return jnp.zeros(shape, jnp.int32), jnp.zeros(shape, jnp.int32)


def _leaves(updates: Params, state: OnlineMergeState, params: Params, delta: Params, pattern: str) -> list[rules.Leaf]:
  paths = _paths(params)
  nothing = [None] * len(paths)
  columns = (
    jax.tree.leaves(updates),
    [jax.device_put(leaf, jax.memory.Space.Device) for leaf in jax.tree.leaves(delta)],  # it may live on the host
    nothing if state.residual is None else jax.tree.leaves(state.residual),
    nothing if state.cache is None else jax.tree.leaves(state.cache),
    state.thresholds or nothing,
  )
  return [
    rules.Leaf(index, _is_stacked(path, param, pattern), param, *rest)
    for index, ((path, param), *rest) in enumerate(zip(paths, *columns, strict=True))
  ]


def _check(params: Params | None, delta: Any) -> None:
  if params is None:
    raise ValueError('online merging needs the parameters: call update(updates, state, params, reference_delta=...)')
  hint = (
    'give the training step Frozen(delta=theta_SFT - theta_base), or call update(..., reference_delta=...), '
    'with a tree like the parameters; optax.masked needs mask_compatible_extra_args=True'
  )
  if delta is None:
    raise ValueError(f'online merging needs the reference delta: {hint}')
  if jax.tree.structure(delta) != jax.tree.structure(params):
    raise ValueError(f'the reference delta does not have the structure of the parameters: {hint}')
  for (path, param), leaf in zip(_paths(params), jax.tree.leaves(delta), strict=True):
    if param.shape != leaf.shape:
      raise ValueError(f'the reference delta of {path} has shape {leaf.shape}, the parameter {param.shape}: {hint}')
    if param.size >= 2**31:
      raise ValueError(f'{path} has {param.size} entries; online merging counts up to 2^31 - 1: split the parameter')
