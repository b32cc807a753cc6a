"""The entries of PEFT's adapter_config.json: each is honoured, without effect on a loaded adapter, or refused by name.

honoured         r, lora_alpha, use_rslora, rank_pattern, alpha_pattern, target_modules, exclude_modules
without effect   `_ANY` with any value, `_VALUES` with the listed values
refused          everything else, unless it is off: null, false, {} or []
"""

from collections.abc import Iterator, Mapping, Sequence
import dataclasses
import math
import re
from typing import Any

from alignjax.models import inert, lora

FIXED = {'peft_type': 'LORA', 'bias': 'none'}  # entries with their only supported value
_PATTERNS = {'rank_pattern': 'r', 'alpha_pattern': 'lora_alpha'}  # overrides of another entry, by module
_HONOURED = {*FIXED, *_PATTERNS, *_PATTERNS.values(), 'target_modules', 'exclude_modules'}
_ANY = frozenset(
  {
    'auto_mapping',
    'base_model_name_or_path',
    'corda_config',  # this and the other settings of initialisers have no effect on stored factors
    'ensure_weight_tying',  # affects only modules that are refused here
    'eva_config',
    'fan_in_fan_out',  # the layout of the base weights, which PEFT corrects itself
    'inference_mode',
    'loftq_config',
    'lora_dropout',  # affects only training
    'lora_ga_config',
    'megatron_core',  # no effect without megatron_config
    'peft_version',
    'qalora_group_size',  # no effect without use_qalora
    'revision',
    'task_type',
  }
)
_VALUES = {
  'init_lora_weights': (True, False, None, 'gaussian', 'Gaussian', 'eva', 'orthogonal', 'mica'),
  'use_rslora': (True, False, None),  # honoured by `settings`
}
_OFF = (None, False, {}, [])
_CHANGES_BASE = (
  'it changes the weights of the base model: convert the adapter with save_pretrained(..., '
  'path_initial_model_for_weight_conversion=...) of PEFT'
)


def check_kind(entries: Mapping[str, Any]) -> None:
  """Raises ValueError if the adapter is of another kind, whose tensors have other names."""
  if (kind := entries.get('peft_type')) != FIXED['peft_type']:
    raise ValueError(
      f'peft_type={kind!r} (only {FIXED["peft_type"]!r}): merge the adapter into its base with PEFT, merge_and_unload()'
    )


def ranks(entries: Mapping[str, Any], settings: lora.LoRA, modules: Mapping[str, Sequence[str]]) -> dict[str, int]:
  """The rank of each module, after checking that the adapter computes what PEFT would compute.

  Args:
    entries: the contents of adapter_config.json.
    settings: the rank and alpha of the adapter.
    modules: the full names of each adapted module in all layers: {'self_attn.q_proj': ['model.layers.0.self_attn...']}.

  Raises:
    ValueError: an entry is not supported. The message names all of them, with their values.
  """
  refused = [
    f'{key}={entries.get(key)!r} (only {value!r})' for key, value in FIXED.items() if entries.get(key) != value
  ]
  refused += [f'{key}={value!r}{_reason(key)}' for key, value in entries.items() if not _supported(key, value)]
  refused += _untargeted(entries, modules)
  values = {}
  for pattern, entry in _PATTERNS.items():
    overrides = entries.get(pattern) or {}
    if not isinstance(overrides, dict) or not all(re.fullmatch(r'[\w.]+', name) for name in overrides):
      refused.append(f'{pattern}={overrides!r} (only an object with module names as keys)')
      overrides = {}
    values[entry] = {}
    for module, names in modules.items():
      first, *others = [_override(overrides, name, entries.get(entry)) for name in names]
      values[entry][module] = first
      if any(other != first for other in others):
        refused.append(f'{pattern}={overrides!r} (only one value for all layers of {module})')
        values[entry][module] = None
  for module in modules:
    rank, alpha = values['r'][module], values['lora_alpha'][module]
    known = rank is not None and alpha is not None
    if known and not _scaled(entries, rank, alpha, settings):
      refused.append(
        f'{module}: rank {rank!r} and alpha {alpha!r} (only a scale of {settings.scale:g} for all modules)'
      )
  if refused:
    raise ValueError(f'unsupported entries: {", ".join(refused)}')
  return values['r']


def settings(entries: Mapping[str, Any], targets: str) -> lora.LoRA:
  """The settings of the adapter. rsLoRA divides by the root of the rank, which is a larger alpha.

  Args:
    entries: the contents of adapter_config.json.
    targets: the adapted modules, as `LoRA.targets`.

  Raises:
    ValueError: the rank or alpha is invalid.
  """
  plain = lora.LoRA(entries.get('r'), entries.get('lora_alpha'), targets)
  if entries.get('use_rslora') is not True:
    return plain
  return dataclasses.replace(plain, alpha=plain.alpha * math.sqrt(plain.rank))


def _scaled(entries: Mapping[str, Any], rank: Any, alpha: Any, settings: lora.LoRA) -> bool:
  """Whether a module has the scale of the adapter."""
  if not (type(rank) is int and rank > 0 and isinstance(alpha, int | float)):
    return False
  divisor = math.sqrt(rank) if entries.get('use_rslora') is True else rank
  return math.isclose(alpha, divisor * settings.scale, rel_tol=1e-6)


def _supported(key: str, value: Any) -> bool:
  """Whether an entry is honoured or has no effect with this value."""
  return key in _HONOURED | _ANY or inert.has_no_effect(key, value, {key: _VALUES.get(key, _OFF)})


def _reason(key: str) -> str:
  return f' ({_CHANGES_BASE})' if key == 'init_lora_weights' else ''


def _override(overrides: Mapping[str, Any], name: str, default: Any) -> Any:
  """The value for the module with this full name, as PEFT finds it: the first pattern that ends the name counts."""
  return next((value for key, value in overrides.items() if re.match(rf'(.*\.)?({key})$', name)), default)


def _untargeted(entries: Mapping[str, Any], modules: Mapping[str, Sequence[str]]) -> Iterator[str]:
  """The reasons why PEFT would leave out factors that the file holds for all layers."""
  every = [name for names in modules.values() for name in names]
  target, excluded = entries.get('target_modules'), entries.get('exclude_modules')
  if not (isinstance(target, str) and target.lower() == 'all-linear'):
    yield from _mismatch('target_modules', target, [name for name in every if not _named(target, name)])
  if excluded:
    yield from _mismatch('exclude_modules', excluded, [name for name in every if _named(excluded, name)])


def _mismatch(entry: str, value: Any, left_out: Sequence[str]) -> Iterator[str]:
  if left_out:
    yield f'{entry}={value!r} (it leaves out {left_out[0]}, but a module must be adapted in all layers)'


def _named(modules: Any, name: str) -> bool:
  """Whether an entry names a module: by a pattern for the whole name, or by a list of names or their ends."""
  if isinstance(modules, str):
    try:
      return re.fullmatch(modules, name) is not None
    except re.error:
      return False
  if not isinstance(modules, list):
    return False
  return any(isinstance(module, str) and f'.{name}'.endswith(f'.{module}') for module in modules)
