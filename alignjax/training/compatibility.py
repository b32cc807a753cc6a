"""Compares what a checkpoint recorded with the run that resumes from it: identity, arrays and installed versions."""

from collections.abc import Collection, Mapping
import importlib.metadata
from typing import Any

_VERSIONED = ('alignjax', 'flax', 'grain', 'jax', 'jaxlib', 'numpy', 'optax', 'orbax-checkpoint')


def versions() -> dict[str, str]:
  """The installed versions of the packages that a run depends on."""
  found = {}
  for name in _VERSIONED:
    try:
      found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:  # alignjax itself, in a checkout that is not installed
      found[name] = 'not installed'
  return found


def changed_versions(saved: Mapping[str, str]) -> list[str]:
  """Describes the packages whose version has changed."""
  return [
    f'{name} {saved.get(name)}; the installed version is {now}'
    for name, now in versions().items()
    if saved.get(name) != now
  ]


def changed_entries(
  saved: Mapping[str, Any], now: Mapping[str, Any], accepted: Collection[str] = ()
) -> tuple[list[str], list[str]]:
  """Describes the entries of an identity that differ: those that may, and those that must not.

  Settings come first, because fingerprints may differ as a result of them.
  """
  changes = {
    name: f'{name}: was {saved.get(name, "absent")!r}, is now {now.get(name, "absent")!r}'
    for name in sorted(saved.keys() | now.keys(), key=lambda name: (name.endswith('_fingerprint'), name))
    if saved.get(name, 'absent') != now.get(name, 'absent')
  }
  return [changes[name] for name in changes if name in accepted], [
    changes[name] for name in changes if name not in accepted
  ]


def specification(leaf: Any) -> dict[str, Any]:
  """The shape and dtype of an array in JSON types."""
  return {'shape': list(leaf.shape), 'dtype': str(leaf.dtype)}


def changed_arrays(saved: Mapping[str, Any], leaves: Mapping[str, Any]) -> list[str]:
  """Describes the arrays that differ in shape or dtype, or that only one side has.

  Args:
    saved: the specifications in a checkpoint, possibly with further entries.
    leaves: the arrays, or their shapes, of the run.
  """

  def described(specification: Mapping[str, Any] | None) -> str:
    return 'absent' if specification is None else f'{specification["dtype"]}{specification["shape"]}'

  changes = []
  for name in sorted(saved.keys() | leaves.keys()):
    was = {key: saved[name][key] for key in ('shape', 'dtype')} if name in saved else None
    now = specification(leaves[name]) if name in leaves else None
    if was != now:
      changes.append(f'{name} was {described(was)} and is now {described(now)}')
  return changes
