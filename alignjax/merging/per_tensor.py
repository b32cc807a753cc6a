"""Per-model and per-tensor numbers of a merge: weights, densities, ratios."""

from collections.abc import Iterable, Mapping, Sequence
import dataclasses
import fnmatch
import math
import numbers

Values = float | Sequence[float]
Given = Values | Mapping[str, Values] | str
_RESERVED = frozenset('=;,')  # separators of the written form


@dataclasses.dataclass(frozen=True)
class Setting:
  """Rules from name patterns to values; the first pattern that matches a tensor's name applies.

  Attributes:
    label: the name used in messages: 'density'.
    rules: pairs of a shell pattern (`*` matches anything, including dots and slashes) and values, one for all models or
      one per model.
  """

  label: str
  rules: tuple[tuple[str, tuple[float, ...]], ...]

  def __str__(self) -> str:
    """The written form, which `setting` parses."""
    written = [(pattern, ','.join(map(repr, values))) for pattern, values in self.rules]
    if len(written) == 1 and written[0][0] == '*':
      return written[0][1]
    return '; '.join(f'{pattern}={values}' for pattern, values in written)

  def argument(self) -> str:
    """The argument in an expression: a number if the setting is a single number, else a quoted string."""
    text = str(self)
    return text if self.rules == (('*', self.rules[0][1][:1]),) else repr(text)

  def check(self, names: Iterable[str], models: int) -> None:
    """Checks the rules against the tensor names and the number of models.

    Raises:
      ValueError: a tensor that no pattern matches, a pattern that applies to no tensor, or a number of values that is
        not the number of models; the message names it.
    """
    for _, values in self.rules:
      if len(values) not in (1, models):
        raise ValueError(f'{self.label}: {len(values)} values for {models} models ({self}): give one, or one for each')
    idle = dict(self.rules)
    for name in names:
      idle.pop(self._rule(name)[0], None)
    if idle:
      raise ValueError(
        f'{self.label}: no tensor is left for the pattern {next(iter(idle))!r} ({self}): '
        'the first pattern that matches applies, so put general patterns last'
      )

  def resolve(self, name: str, models: int) -> tuple[float, ...]:
    """The values for one tensor, one per model.

    Raises:
      ValueError: no pattern matches `name`.
    """
    values = self._rule(name)[1]
    return values * models if len(values) == 1 else values

  def _rule(self, name: str) -> tuple[str, tuple[float, ...]]:
    for pattern, values in self.rules:
      if fnmatch.fnmatchcase(name, pattern):
        return pattern, values
    raise ValueError(f'{self.label}: no pattern matches the tensor {name} ({self}): add one, such as *=...')


def setting(label: str, given: Given, interval: str = '(-inf, inf)') -> Setting:
  """Parses a setting.

  Args:
    label: the name used in messages.
    given: a number for all models; a sequence with one number per model; a mapping from patterns of tensor names to
      either, where the first match applies; or the written form of these: '0.5', '0.3,0.7', '*.mlp.*=0.3,0.7; *=0.5'.
    interval: the interval of valid values, such as '(0, 1]', which excludes 0.

  Raises:
    ValueError: the setting cannot be parsed, or a value is out of range; the message names the setting.
  """
  rules = _parse(label, given) if isinstance(given, str) else _rules(given)
  read = []
  for pattern, values in rules:
    if not pattern or _RESERVED & set(pattern) or pattern != pattern.strip():
      raise ValueError(f'{label}: {pattern!r} is not a pattern of tensor names')
    if any(pattern == earlier for earlier, _ in read):
      raise ValueError(f'{label}: the pattern {pattern!r} is given twice')
    read.append((pattern, tuple(_number(label, value, interval) for value in values)))
    if not values:
      raise ValueError(f'{label}: no value for the pattern {pattern!r}')
  if not read:
    raise ValueError(f'{label}: no value is given')
  return Setting(label, tuple(read))


def _rules(given: Values | Mapping[str, Values]) -> list[tuple[str, tuple[float, ...]]]:
  mapping = given if isinstance(given, Mapping) else {'*': given}
  return [(pattern, _sequence(values)) for pattern, values in mapping.items()]


def _sequence(values: Values) -> tuple[float, ...]:
  return tuple(values) if isinstance(values, Sequence) and not isinstance(values, str) else (values,)


def _parse(label: str, text: str) -> list[tuple[str, tuple[float, ...]]]:
  rules = []
  for part in text.split(';'):
    pattern, equals, values = part.rpartition('=')
    try:
      numbers = tuple(map(float, values.split(',')))
    except ValueError:
      raise ValueError(
        f"{label}: cannot parse {text!r}: write 0.5, or 0.3,0.7 for two models, or '*.mlp.*=0.3,0.7; *=0.5'"
      ) from None
    rules.append((pattern.strip() if equals else '*', numbers))
  return rules


def _number(label: str, value: float, interval: str) -> float:
  if isinstance(value, bool) or not isinstance(value, numbers.Real) or not math.isfinite(value):
    raise ValueError(f'{label}: {value!r} is not a finite number')
  low, high = map(float, interval[1:-1].split(','))
  if not low <= value <= high or (value == low and interval[0] == '(') or (value == high and interval[-1] == ')'):
    raise ValueError(f'{label}: must be in {interval}, got {value!r}')
  return float(value)
