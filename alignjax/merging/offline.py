"""Merge methods: factories of `Method`, under their names in expressions.

theta_i are the models, theta_0 the base, tau_i = theta_i - theta_0 the task vectors and w_i the weights. Every formula
applies to each tensor separately: a density is a fraction of one tensor, as in mergekit. The original TIES ranks the
entries of the whole model together.

References:
  Goddard et al. 2024, Arcee's MergeKit: A Toolkit for Merging Large Language Models, https://arxiv.org/abs/2403.13257:
  the meaning of weights, densities, consensus and normalization is that of its published merge methods.
"""

import dataclasses

import jax
import jax.numpy as jnp

from alignjax.merging import base, combine, per_tensor, sparsify
from alignjax.types import Array

COLINEAR = 0.9995  # |cosine| above which slerp interpolates linearly


@base.factory
def linear(normalize: bool = True) -> base.Method:
  """Weighted average of models, also called a model soup.

  theta = sum_i w_i theta_i / sum_i w_i

  Args:
    normalize: whether to divide by the sum of weights. Negative weights extrapolate.

  Returns:
    A method for 1 or more models, without a base.

  References:
    Wortsman et al. 2022, Model soups: averaging weights of multiple fine-tuned models improves accuracy without
    increasing inference time, https://arxiv.org/abs/2203.05482.
  """

  def merge(block: base.Block, state: base.State) -> Array:
    return combine.weighted_sum(tuple(jnp.asarray(model, jnp.float32) for model in block.models), state)

  if not normalize:
    return base.Method('linear', combine.weights_state, jax.jit(merge), needs_base=False)
  return base.Method('linear', combine.shares_state, jax.jit(merge), needs_base=False, verify=combine.check_total)


@base.factory
def slerp(t: per_tensor.Given = 0.5) -> base.Method:
  """Interpolation of two models along the arc between them, each tensor as one vector.

  theta = [sin((1 - t) phi) theta_1 + sin(t phi) theta_2] / sin(phi)
  cos(phi) = <theta_1, theta_2> / (|theta_1| |theta_2|)

  Tensors with nearly equal or opposite directions, |cos(phi)| > 0.9995, are interpolated linearly,
  (1 - t) theta_1 + t theta_2. A tensor of zeros has no direction and counts as orthogonal.

  Args:
    t: position between the models, in [0, 1]: 0 is the first model and 1 the second. One number, or one per pattern of
      tensor names.

  Returns:
    A method for 2 models, without a base or weights.

  Raises:
    ValueError: t is out of range.

  References:
    Shoemake 1985, Animating Rotation with Quaternion Curves, https://doi.org/10.1145/325334.325242.
  """
  ratio = per_tensor.setting('slerp: t', t, '[0, 1]')
  combine.require(all(len(values) == 1 for _, values in ratio.rules), 'slerp', 't is one number for both models', t)

  def start(tensor: base.Tensor, values: combine.Values) -> base.State:
    del tensor
    return {'t': jnp.float32(values['t'][0])}

  def products(block: base.Block, state: base.State) -> Array:
    del state
    first, second = (jnp.asarray(model, jnp.float32) for model in block.models)
    return jnp.stack([jnp.sum(first * second), jnp.sum(first * first), jnp.sum(second * second)])

  def finish(sums: Array, state: base.State) -> base.State:
    length = jnp.sqrt(sums[1]) * jnp.sqrt(sums[2])
    cosine = jnp.where(length > 0, sums[0] / jnp.where(length > 0, length, 1.0), 0.0)
    straight = jnp.abs(cosine) > COLINEAR
    angle = jnp.arccos(jnp.where(straight, 0.0, cosine))
    arc = jnp.sin(jnp.stack([1.0 - state['t'], state['t']]) * angle) / jnp.sin(angle)
    return {'weight': jnp.where(straight, jnp.stack([1.0 - state['t'], state['t']]), arc)}

  def merge(block: base.Block, state: base.State) -> Array:
    return combine.weighted_sum(tuple(jnp.asarray(model, jnp.float32) for model in block.models), state)

  reading = base.Pass(jax.jit(products), finish)
  return base.Method(
    'slerp', start, jax.jit(merge), (reading,), False, takes_weights=False, settings={'t': ratio}, fewest=2, most=2
  )


@base.factory
def task_arithmetic(normalize: bool = False, scale: float = 1.0) -> base.Method:
  """Adds task vectors to the base.

  theta = theta_0 + scale * sum_i w_i tau_i

  Args:
    normalize: whether to divide by the sum of weights.
    scale: the coefficient lambda; a negative one moves away from the models.

  Returns:
    A method for 1 or more models and their base.

  Raises:
    ValueError: scale is not finite.

  References:
    Ilharco et al. 2023, Editing Models with Task Arithmetic, https://arxiv.org/abs/2212.04089.
  """
  return combine.added('task_arithmetic', sparsify.dense(), {}, 'linear', normalize, scale)


@base.factory
def ties(density: per_tensor.Given = 0.2, normalize: bool = True, scale: float = 1.0) -> base.Method:
  """Trims task vectors, elects a sign for every entry, and averages the entries with that sign.

  tau~_i = tau_i where |tau_i| is among the largest, else 0
  s = sign(sum_i w_i tau~_i), and + for 0;  A = {i: sign(w_i tau~_i) = s}
  theta = theta_0 + scale * sum_A w_i tau~_i / sum_A w_i

  Exactly max(1, floor(density n)) of the n entries of a tensor are kept. Among equal magnitudes, which are common in
  bfloat16 models, the tensor's name, the model's index and the position decide. The original trims over the whole
  model, not per tensor as here and in mergekit, and weights all models equally.

  Args:
    density: fraction of entries to keep, in (0, 1]; one number, one per model, or one per pattern of tensor names.
    normalize: whether to divide by the sum of the weights that agree; False returns the weighted sum. If True, weights
      must not be negative.
    scale: the coefficient lambda.

  Returns:
    A method for 1 or more models and their base.

  Raises:
    ValueError: an argument is out of range.

  Defaults:
    density from the paper, which keeps the top 20 %.

  References:
    Yadav et al. 2023, TIES-Merging: Resolving Interference When Merging Models, https://arxiv.org/abs/2306.01708.
  """
  return combine.added('ties', sparsify.largest(), _density('ties', density), 'ties', normalize, scale)


@base.factory
def dare(
  density: per_tensor.Given = 0.5,
  consensus: str = 'linear',
  rescale: str = 'inverse',
  normalize: bool = False,
  scale: float = 1.0,
  seed: int = 0,
) -> base.Method:
  """Drops entries of task vectors at random and rescales the others.

  theta = theta_0 + scale * sum_i w_i m_i tau_i / density,  m_i ~ Bernoulli(density)

  Draws depend on the seed, the tensor's name, the model's index and the row, so the result does not depend on the mesh,
  the order of tensors or how they are split into files.

  Args:
    density: probability of keeping an entry, in (0, 1]; one number, one per model, or one per pattern of tensor names.
    consensus: 'linear' adds the remaining entries; 'ties' elects a sign and adds the entries that agree with it.
    rescale: 'inverse' divides by the density, as in the paper; 'l1' restores the L1 norm of each tensor, as mergekit
      does; 'none' does not rescale.
    normalize: whether to divide by the sum of the weights that are added.
    scale: the coefficient lambda.
    seed: seed of the random draws.

  Returns:
    A method for 1 or more models and their base.

  Raises:
    ValueError: an argument is out of range.

  References:
    Yu et al. 2024, Language Models are Super Mario: Absorbing Abilities from Homologous Models as a Free Lunch,
    https://arxiv.org/abs/2311.03099.
  """
  _check_random('dare', rescale, seed)
  return combine.added(
    'dare', sparsify.bernoulli(seed, rescale), _density('dare', density), consensus, normalize, scale
  )


@base.factory
def breadcrumbs(
  density: per_tensor.Given = 0.9,
  gamma: per_tensor.Given = 0.01,
  consensus: str = 'linear',
  normalize: bool = False,
  scale: float = 1.0,
) -> base.Method:
  """Adds the entries of task vectors with medium magnitude, without outliers and without the smallest entries.

  theta = theta_0 + scale * sum_i w_i b_i tau_i, where b_i drops the fraction gamma with the largest |tau_i|, and the
  smallest entries until the fraction `density` is left. Equal magnitudes are ordered as in `ties`.

  Args:
    density: fraction of entries to keep, in (0, 1]; one number, one per model, or one per pattern of tensor names.
    gamma: fraction of largest entries to drop, in [0, 1); at most 1 - density are dropped.
    consensus: 'linear' adds the remaining entries; 'ties' elects a sign and adds the entries that agree with it.
    normalize: whether to divide by the sum of the weights that are added.
    scale: the coefficient lambda.

  Returns:
    A method for 1 or more models and their base.

  Raises:
    ValueError: an argument is out of range.

  If gamma amounts to less than one entry, no large entry is dropped. In mergekit, a slice that ends at -0 drops the
  whole tensor in this case.

  Defaults:
    gamma from mergekit.

  References:
    Davari and Belilovsky 2024, Model Breadcrumbs: Scaling Multi-Task Model Merging with Sparse Masks,
    https://arxiv.org/abs/2312.06795.
  """
  shares = _density('breadcrumbs', density) | {'gamma': per_tensor.setting('breadcrumbs: gamma', gamma, '[0, 1)')}
  return combine.added('breadcrumbs', sparsify.band(), shares, consensus, normalize, scale)


@base.factory
def della(
  density: per_tensor.Given = 0.5,
  epsilon: per_tensor.Given = 0.15,
  consensus: str = 'ties',
  rescale: str = 'inverse',
  normalize: bool = True,
  scale: float = 1.0,
  seed: int = 0,
) -> base.Method:
  """DARE with larger entries more likely to be kept.

  p_i = density + epsilon (2 rank_i / (columns - 1) - 1),  m_i ~ Bernoulli(p_i)
  theta = theta_0 + scale * (the average of the m_i tau_i / p_i that agree in sign, as in `ties`)

  The rank is that of |tau_i| in its row (the last axis), from 0 for the smallest; the mean of p is the density.

  Args:
    density: mean probability of keeping an entry, in (0, 1]; one number, one per model, or one per pattern of tensor
      names. 1 keeps everything.
    epsilon: half the range of probabilities, in [0, 0.5); density - epsilon must be positive and density + epsilon at
      most 1. The window of the paper is the whole range, 2 epsilon.
    consensus: 'ties' elects a sign and averages the entries that agree with it; 'linear' adds everything.
    rescale: 'inverse' divides by the probability of each entry, as in the paper; 'l1' restores the L1 norm of each
      tensor, as mergekit does; 'none' does not rescale.
    normalize: whether to divide by the sum of the weights that are added.
    scale: the coefficient lambda.
    seed: seed of the random draws.

  Returns:
    A method for 1 or more models and their base.

  Raises:
    ValueError: an argument is out of range.

  Defaults:
    epsilon from mergekit.

  References:
    Deep et al. 2024, DELLA-Merging: Reducing Interference in Model Merging through Magnitude-Based Sampling,
    https://arxiv.org/abs/2406.11617.
  """
  _check_random('della', rescale, seed)
  shares = _density('della', density) | {'epsilon': per_tensor.setting('della: epsilon', epsilon, '[0, 0.5)')}
  thinned = sparsify.by_rank(seed, rescale)

  method = combine.added('della', thinned, shares, consensus, normalize, scale)

  def verify(name: str, values: combine.Values) -> None:
    method.verify(name, values)
    for share, half in zip(values['density'], values['epsilon'], strict=True):
      possible = share == 1.0 or (share - half > 0.0 and share + half <= 1.0)
      combine.require(possible, f'della, tensor {name}', 'density ± epsilon must be in (0, 1]', (share, half))

  return dataclasses.replace(method, verify=verify)


@base.factory
def model_stock() -> base.Method:
  """Interpolates between the base and the average of the models; the more the task vectors align, the further it moves.

  theta = t mean_i(theta_i) + (1 - t) theta_0,  t = N cos(phi) / (1 + (N - 1) cos(phi))

  cos(phi) is the mean cosine over pairs of task vectors, each tensor as one vector. (The paper assumes the same angle
  for all pairs; the mean is mergekit's choice.) If it is negative, t is 0, because the formula would extrapolate and
  diverges at cos(phi) = -1 / (N - 1). A task vector of zeros is orthogonal to all others.

  Returns:
    A method for 2 or more models and their base, without weights.

  References:
    Jang et al. 2024, Model Stock: All we need is just a few fine-tuned models, https://arxiv.org/abs/2403.19522.
  """

  def start(tensor: base.Tensor, values: combine.Values) -> base.State:
    del tensor, values
    return {}

  return base.Method(
    'model_stock', start, _towards_mean, (base.Pass(_products, _stock_ratio),), takes_weights=False, fewest=2
  )


@jax.jit
def _products(block: base.Block, state: base.State) -> Array:
  del state
  deltas = block.deltas()
  return jnp.stack([jnp.sum(deltas * delta[None], axis=(1, 2)) for delta in deltas])


def _stock_ratio(products: Array, state: base.State) -> base.State:
  del state
  count = products.shape[0]
  lengths = jnp.sqrt(jnp.diagonal(products))
  norms = lengths[:, None] * lengths[None, :]
  cosines = jnp.where(norms > 0, products / jnp.where(norms > 0, norms, 1.0), 0.0)
  cosine = jnp.clip(jnp.mean(cosines[jnp.triu_indices(count, 1)]), 0.0, 1.0)
  return {'ratio': count * cosine / (1.0 + (count - 1) * cosine)}


@jax.jit
def _towards_mean(block: base.Block, state: base.State) -> Array:
  return jnp.asarray(block.base, jnp.float32) + state['ratio'] * jnp.mean(block.deltas(), axis=0)


def _density(method: str, density: per_tensor.Given) -> dict[str, per_tensor.Setting]:
  return {'density': per_tensor.setting(f'{method}: density', density, '(0, 1]')}


def _check_random(method: str, rescale: str, seed: int) -> None:
  combine.require(
    rescale in sparsify.RESCALES, method, f'rescale must be one of {", ".join(sparsify.RESCALES)}', rescale
  )
  combine.require(type(seed) is int and 0 <= seed < 2**32, method, 'seed must be an integer in [0, 2**32)', seed)
