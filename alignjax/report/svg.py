"""Draws charts as SVG: text, lines and colours come from the style sheet of the page, so they follow dark mode.

A chart has a title and a description for readers who do not see it. Points have titles, which browsers show on hover.
"""

from collections.abc import Iterator, Sequence
import dataclasses
import math
from typing import NamedTuple

import markupsafe
import numpy as np

from alignjax.report import naming

COLORS = 7  # in the style sheet, c0 .. c6
MOST_POINTS = 400  # of a line; of more, the lowest and the highest in each interval
CHARACTER = 6.1  # width of a character of a label, on average
GAP = 12.5  # between the base lines of labels
NEAR = 12  # a line that ends so close to the right of the axes has its label there
Markup = markupsafe.Markup


@dataclasses.dataclass(frozen=True)
class Series:
  """A line, or points.

  Attributes:
    x: [n].
    y: [n].
    label: its name, written at its end; empty: none.
    color: the number of its colour, any whole number.
    dash: the number of its pattern; 0 is solid.
    raw: values drawn faintly behind the line, [n]; None: none.
    error: standard errors of y, [n], drawn as a band, or as bars if there are markers; None: none.
    spread: the ends of an interval of x, [2, n]; None: none.
    markers: whether each point has a marker.
    notes: a text beside each point; empty: none.
  """

  x: np.ndarray
  y: np.ndarray
  label: str = ''
  color: int = 0
  dash: int = 0
  raw: np.ndarray | None = None
  error: np.ndarray | None = None
  spread: np.ndarray | None = None
  markers: bool = False
  notes: Sequence[str] = ()


class Mark(NamedTuple):
  """A place on the horizontal axis that is marked with a cross."""

  x: float
  text: str
  color: int


@dataclasses.dataclass(frozen=True)
class Chart:
  """Series over common axes.

  Attributes:
    title: what is shown.
    x: the name of the horizontal axis.
    y: the name or unit of the vertical axis.
    series: the lines.
    marks: marked places.
    log: whether the vertical axis is logarithmic; needs positive values.
    size: width and height.
  """

  title: str
  x: str
  y: str
  series: Sequence[Series]
  marks: Sequence[Mark] = ()
  log: bool = False
  size: tuple[int, int] = (420, 236)


@dataclasses.dataclass(frozen=True)
class Axes:
  """Maps values to places in the picture."""

  low: tuple[float, float]  # x, y
  high: tuple[float, float]
  box: tuple[float, float, float, float]  # left, top, right, bottom
  log: bool
  step: float = 1.0  # between the ticks of the vertical axis

  def x(self, value: float) -> float:
    left, _, right, _ = self.box
    return left + (value - self.low[0]) / (self.high[0] - self.low[0]) * (right - left)

  def y(self, value: float) -> float:
    _, top, _, bottom = self.box
    low, high = self.low[1], self.high[1]
    if self.log:
      value, low, high = math.log10(max(value, low)), math.log10(low), math.log10(high)
    return bottom - (value - low) / (high - low) * (bottom - top)


def draw(chart: Chart, name: str) -> Markup:
  """Draws a chart.

  Args:
    chart: the chart; it has at least one point.
    name: the id of the picture in the page.
  """
  axes = _axes(chart)
  parts = [*_grid(chart, axes), *_marks(chart, axes)]
  for series in chart.series:
    parts += _series(series, axes)
  parts += _labels(chart, axes)
  return picture(name, chart.title, _description(chart), chart.size, parts)


def picture(name: str, title: str, text: str, size: tuple[int, int], parts: Sequence[Markup]) -> Markup:
  """An SVG with a title and a description."""
  return Markup(
    '<svg id="{0}" viewBox="0 0 {1} {2}" role="img" aria-labelledby="{0}-title {0}-text">'
    '<title id="{0}-title">{3}</title><desc id="{0}-text">{4}</desc>{5}</svg>'
  ).format(name, *size, title, text, Markup('').join(parts))


def _axes(chart: Chart) -> Axes:
  values_x, values_y = [np.array([mark.x for mark in chart.marks])], []
  for each in chart.series:
    values_x += [each.x, *(() if each.spread is None else each.spread)]
    values_y += [each.y, *(() if each.raw is None else [each.raw])]
    if each.error is not None:
      values_y += [each.y - np.nan_to_num(each.error), each.y + np.nan_to_num(each.error)]
  (x_low, x_high), (y_low, y_high) = (_range(np.concatenate(each)) for each in (values_x, values_y))
  if 0 < x_low < 0.05 * x_high:
    x_low = 0.0
  step = _step(y_high - y_low)
  if chart.log:
    y_low, y_high = 10 ** math.floor(math.log10(y_low)), 10 ** math.ceil(math.log10(y_high))
  else:
    y_low, y_high = math.floor(y_low / step + 1e-9) * step, math.ceil(y_high / step - 1e-9) * step
  width, height = chart.size
  longest = max((len(each.label) for each in chart.series), default=0)
  right = width - 10 - (CHARACTER * longest + 8 if longest else 4)
  return Axes((x_low, y_low), (x_high, y_high), (46, 22, right, height - 34), chart.log, step)


def _range(values: np.ndarray) -> tuple[float, float]:
  low, high = float(values.min()), float(values.max())
  if high - low <= 1e-9 * max(abs(low), abs(high)):
    around = abs(low) * 0.1 or 1.0
    return low - around, high + around
  return low, high


def _step(span: float) -> float:
  """A round distance between about four ticks."""
  power = 10 ** math.floor(math.log10(span / 4))
  return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= span / 4.5)


def _ticks(low: float, high: float, step: float) -> list[float]:
  first, last = math.ceil(low / step - 1e-6), math.floor(high / step + 1e-6)
  return [step * i for i in range(first, last + 1)]


def _tick(value: float) -> str:
  shown = f'{round(value / 1000, 3):g}k' if abs(value) >= 10_000 else f'{round(value, 9):g}'
  if len(shown) > 6 or abs(value) >= 1e6 or (value and abs(value) < 1e-4):
    digits, power = f'{value:.2e}'.split('e')
    shown = f'{float(digits):g}e{int(power)}'
  return naming.minus(shown)


def _grid(chart: Chart, axes: Axes) -> Iterator[Markup]:
  left, top, right, bottom = axes.box
  low, high = axes.low[1], axes.high[1]
  if axes.log:
    ticks = [10.0**i for i in range(round(math.log10(low)), round(math.log10(high)) + 1)]
  else:
    ticks = _ticks(low, high, axes.step)
  for value in ticks:
    y = axes.y(value)
    yield Markup('<line class="grid" x1="{}" x2="{}" y1="{:.1f}" y2="{:.1f}"/>').format(left, right, y, y)
    yield text(left - 6, y + 4, _tick(value), 'end')
  ends = axes.low[0], axes.high[0]
  for value in _ticks(*ends, _step(ends[1] - ends[0])):
    if value == round(value) or ends[1] - ends[0] < 4:  # updates and rounds are whole numbers
      yield text(axes.x(value), bottom + 15, _tick(value), 'middle')
  yield Markup('<line class="axis" x1="{}" x2="{}" y1="{}" y2="{}"/>').format(left, right, bottom, bottom)
  yield text(right, bottom + 30, chart.x, 'end', 'of-axis')
  if chart.y:
    yield text(4, top - 10, chart.y + (', logarithmic' if chart.log else ''), 'start', 'of-axis')


def text(x: float, y: float, content: str, anchor: str, kind: str = 'tick') -> Markup:
  """A text at a place; `kind` is its class."""
  return Markup('<text class="{}" x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(kind, x, y, anchor, content)


def _marks(chart: Chart, axes: Axes) -> Iterator[Markup]:
  _, top, _, bottom = axes.box
  for mark in chart.marks:
    x = axes.x(mark.x)
    yield Markup(
      '<g class="mark c{}"><title>{}</title><line x1="{:.1f}" x2="{:.1f}" y1="{}" y2="{}"/>'
      '<path d="M{:.1f} {:.1f}l7 7m0 -7l-7 7"/></g>'
    ).format(mark.color % COLORS, mark.text, x, x, top, bottom, x - 3.5, bottom - 3.5)


def _series(series: Series, axes: Axes) -> Iterator[Markup]:
  style = f'c{series.color % COLORS} d{series.dash % 3}'
  if series.error is not None and not series.markers:
    error = np.nan_to_num(series.error)
    edge = [*zip(series.x, series.y + error, strict=True), *zip(series.x[::-1], (series.y - error)[::-1], strict=True)]
    yield Markup('<path class="band {}" d="{}Z"/>').format(style, _path(edge, axes))
  if series.raw is not None:
    yield Markup('<path class="raw {}" d="{}"/>').format(style, _path(_thinned(series.x, series.raw), axes))
  if len(series.x) > 1:
    yield Markup('<path class="line {}" d="{}"/>').format(style, _path(_thinned(series.x, series.y), axes))
  if series.markers or len(series.x) == 1:
    yield from _points(series, axes, style)


def _points(series: Series, axes: Axes, style: str) -> Iterator[Markup]:
  for i, (x, y) in enumerate(zip(series.x, series.y, strict=True)):
    place = axes.x(x), axes.y(y)
    if series.error is not None and np.isfinite(series.error[i]):
      ends = axes.y(y - series.error[i]), axes.y(y + series.error[i])
      yield Markup('<path class="whisker {}" d="M{:.1f} {:.1f}V{:.1f}"/>').format(style, place[0], *ends)
    if series.spread is not None:
      ends = axes.x(series.spread[0][i]), axes.x(series.spread[1][i])
      yield Markup('<path class="whisker {}" d="M{:.1f} {:.1f}H{:.1f}"/>').format(style, ends[0], place[1], ends[1])
    note = series.notes[i] if series.notes else ''
    captions = ', '.join(filter(None, (series.label, note, f'{_tick(float(x))}: {naming.number(float(y))}')))
    yield Markup('<circle class="point {}" cx="{:.1f}" cy="{:.1f}" r="2.8"><title>{}</title></circle>').format(
      style, *place, captions
    )


def _path(points: Sequence[tuple[float, float]], axes: Axes) -> str:
  return 'M' + 'L'.join(f'{axes.x(x):.1f} {axes.y(y):.1f}' for x, y in points)


def _thinned(x: np.ndarray, y: np.ndarray) -> list[tuple[float, float]]:
  """The points of a line, or of a long one the lowest and the highest in each interval."""
  if len(x) <= MOST_POINTS:
    return list(zip(x, y, strict=True))
  kept = {0, len(x) - 1}
  for part in np.array_split(np.arange(len(x)), MOST_POINTS // 2):
    kept |= {int(part[np.argmin(y[part])]), int(part[np.argmax(y[part])])}
  return [(x[i], y[i]) for i in sorted(kept)]


def _labels(chart: Chart, axes: Axes) -> Iterator[Markup]:
  """The names of the lines, beside the axes if they end there, else beside their last points; and the notes."""
  named = [(axes.x(float(each.x[-1])), axes.y(float(each.y[-1])), each) for each in chart.series if each.label]
  right = axes.box[2]
  yield from _beside_axes([place for place in named if place[0] > right - NEAR], axes)
  taken = [(x - 3, x + 3, y + 4) for x, y in _marked(chart, axes)]
  wanted = [(x, y, each.label, 'label') for x, y, each in named if x <= right - NEAR]
  for each in chart.series:
    places = zip(each.x, each.y, each.notes, strict=False)
    wanted += [(axes.x(float(x)), axes.y(float(y)), note, 'tick') for x, y, note in places]
  for x, y, words, kind in wanted:
    if place := _free((x, y), CHARACTER * len(words), kind, axes, taken):
      yield text(*place, words, 'start', kind)
    elif kind == 'label':
      yield text(x + 6, y - 7, words, 'start', kind)


def _marked(chart: Chart, axes: Axes) -> Iterator[tuple[float, float]]:
  for each in chart.series:
    if each.markers:
      yield from ((axes.x(float(x)), axes.y(float(y))) for x, y in zip(each.x, each.y, strict=True))


def _free(
  point: tuple[float, float], width: float, kind: str, axes: Axes, taken: list[tuple[float, float, float]]
) -> tuple[float, float] | None:
  """Where a text beside a point overlaps no other one, which is then taken; None if there is no such place.

  Args:
    point: the place of the point.
    width: the width of the text.
    kind: the class of the text: labels prefer places above a point, notes below.
    axes: the axes.
    taken: the left and right ends and the base lines of other texts.
  """
  x, y = point
  above, below = ([(x + 6, y + away), (x - 6 - width, y + away)] for away in (-6, 14))
  for left, base in [*above, *below, (x + 6, y - 19)] if kind == 'label' else [*below, *above]:
    apart = all(left > end or left + width < start or abs(base - other) >= GAP for start, end, other in taken)
    if left > axes.box[0] - 4 and apart:
      taken.append((left, left + width, base))
      return left, base
  return None


_Named = tuple[float, float, Series]  # the place of its last point


def _beside_axes(named: Sequence[_Named], axes: Axes) -> Iterator[Markup]:
  """Names in a column on the right, moved apart where they would overlap."""
  named = sorted(named, key=lambda place: place[1])
  _, top, right, limit = axes.box
  places: list[float] = []
  for _, y, _ in named:
    places.append(max(y, places[-1] + GAP) if places else max(y, top))
  for i in reversed(range(len(places))):
    places[i] = min(places[i], limit)
    limit = places[i] - GAP
  for place, (x, y, each) in zip(places, named, strict=True):
    yield Markup('<path class="lead c{}" d="M{:.1f} {:.1f}L{:.1f} {:.1f}"/>').format(
      each.color % COLORS, x + 3, y, right + 5, place
    )
    yield text(right + 8, place + 4, each.label, 'start', 'label')


def _description(chart: Chart) -> str:
  """The ends of each line, in words."""
  captions = []
  for each in chart.series:
    ends = naming.number(float(each.y[0])), naming.number(float(each.y[-1]))
    captions.append(f'{each.label or chart.title}: {ends[0]}' + (f' to {ends[1]}' if len(each.y) > 1 else ''))
  marks = f' {"; ".join(mark.text for mark in chart.marks)}.' if chart.marks else ''
  return f'{chart.y or "Value"} over {chart.x}. {"; ".join(captions)}.{marks}'


def horizontal(values: Sequence[float], box: tuple[float, float, float, float]) -> Axes:
  """Axes whose vertical places are given in the picture."""
  low, high = _range(np.asarray(values, float))
  margin = (high - low) * 0.04
  return Axes((low - margin, 0.0), (high + margin, 1.0), box, False)


def vertical_grid(axes: Axes) -> Iterator[Markup]:
  """The ticks of the horizontal axis."""
  _, top, _, bottom = axes.box
  ends = axes.low[0], axes.high[0]
  for value in _ticks(*ends, _step(ends[1] - ends[0])):
    x = axes.x(value)
    yield Markup('<line class="grid" x1="{:.1f}" x2="{:.1f}" y1="{}" y2="{}"/>').format(x, x, top, bottom)
    yield text(x, bottom + 14, _tick(value), 'middle')
