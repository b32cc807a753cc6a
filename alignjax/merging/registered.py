"""The names under which expressions know merge methods."""

from collections.abc import Callable
import dataclasses
import functools

from alignjax import registry
from alignjax.merging import base, offline

METHODS: dict[str, Callable[..., base.Method]] = {
  build.__name__: build
  for build in (
    offline.breadcrumbs,
    offline.dare,
    offline.della,
    offline.linear,
    offline.model_stock,
    offline.slerp,
    offline.task_arithmetic,
    offline.ties,
  )
}
"""Every merge method, by its name in expressions; `factory` adds to it."""


def factory[**P](build: Callable[P, base.Method]) -> Callable[P, base.Method]:
  """Registers a function that builds a merge method, and names what it builds by the expression that builds it again.

  Raises:
    ValueError: another function is registered under the name.
  """

  @functools.wraps(build)
  def named(*args: P.args, **kwargs: P.kwargs) -> base.Method:
    return dataclasses.replace(build(*args, **kwargs), name=registry.expression(build, args, kwargs))

  return registry.add(METHODS, named, 'merge methods')
