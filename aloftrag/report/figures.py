"""Figures as inline SVG: small enough for a phone, drawn in the page's colours, each with a text that says what it shows."""

from collections.abc import Mapping, Sequence
from typing import Any

from markupsafe import Markup, escape

_WIDTH, _HEIGHT = 360, 180
_LEFT, _RIGHT, _TOP, _BOTTOM = 34, 8, 22, 34
_ROW = 38  # height of a row of ``intervals``


def histogram(
    labels: Sequence[str], series: Mapping[str, Sequence[float]], alt: str, *, line_before: tuple[int, str] | None = None, x_name: str = ""
) -> Markup:
    """Shares (0 to 1) of each series in each bin, side by side; ``line_before``: a line before the bin of this number, and its label."""
    most = max((share for shares in series.values() for share in shares), default=0) or 1.0
    bin_width = (_WIDTH - _LEFT - _RIGHT) / max(1, len(labels))
    parts = [*_y_axis(most, "{:.0%}"), *_legend(series)]
    for number, shares in enumerate(series.values()):
        width = 0.86 * bin_width / len(series)
        for place, share in enumerate(shares):
            x, top = _LEFT + place * bin_width + 0.07 * bin_width + number * width, _y(share / most)
            parts.append(_tag("rect", x=x, y=top, width=width, height=_y(0) - top, class_=f"series-{number}"))
    step = -(-len(labels) // 8)  # so that they do not run into each other
    for place in range(0, len(labels), step):
        parts.append(_text(_LEFT + (place + 0.5) * bin_width, _y(0) + 12, labels[place], "middle"))
    if line_before:
        x = _LEFT + line_before[0] * bin_width
        parts.append(_tag("line", x1=x, x2=x, y1=_TOP - 4, y2=_y(0), class_="mark"))
        parts.append(_text(x, _TOP - 8, line_before[1], "end" if x > _WIDTH / 2 else "start"))
    return _svg(_HEIGHT, [*parts, _text(_WIDTH / 2, _HEIGHT - 5, x_name, "middle")], alt)


def intervals(rows: Sequence[tuple[str, float, float, tuple[float, float] | None]], alt: str) -> Markup:
    """A row per metric: base (ring), adapter (dot) and, where given, the interval that the adapter's lies in; shares from 0 to 1."""

    def x(share: float) -> float:
        return _RIGHT + 4 + (_WIDTH - 2 * _RIGHT - 8) * min(1.0, max(0.0, share))

    parts, bottom = [], len(rows) * _ROW + 6
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(_tag("line", x1=x(share), x2=x(share), y1=4, y2=bottom, class_="grid"))
        parts.append(_text(x(share), bottom + 12, f"{share:.0%}", "middle"))
    for number, (name, base, adapter, interval) in enumerate(rows):
        y = number * _ROW + 28
        parts.append(_text(_RIGHT + 4, y - 12, f"{name}: {base:.1%} → {adapter:.1%}"))
        parts.append(_tag("line", x1=x(base), x2=x(adapter), y1=y, y2=y, class_="change"))
        if interval:
            parts.append(_tag("line", x1=x(interval[0]), x2=x(interval[1]), y1=y, y2=y, class_="interval"))
        parts.append(_tag("circle", cx=x(base), cy=y, r=5, class_="ring"))
        parts.append(_tag("circle", cx=x(adapter), cy=y, r=5, class_="dot"))
    return _svg(bottom + 18, parts, alt)


def lines(series: Mapping[str, Sequence[tuple[float, float]]], alt: str, x_name: str) -> Markup:
    """A line per series through points (x, y); y from 0."""
    points = [point for line in series.values() for point in line]
    last, most = max((x for x, _ in points), default=1) or 1, max((y for _, y in points), default=1) or 1
    width = _WIDTH - _LEFT - _RIGHT
    parts = [*_y_axis(most, "{:.2g}"), *_legend(series)]
    for number, line in enumerate(series.values()):
        path = " ".join(f"{_LEFT + width * x / last:.1f},{_y(y / most):.1f}" for x, y in line)
        parts.append(_tag("polyline", points=path, class_=f"line-{number}"))
    parts += [_text(_LEFT, _y(0) + 12, "0", "middle"), _text(_WIDTH - _RIGHT, _y(0) + 12, f"{last:,.0f}", "end")]
    return _svg(_HEIGHT, [*parts, _text(_WIDTH / 2, _HEIGHT - 5, x_name, "middle")], alt)


def _y(share: float) -> float:
    return _HEIGHT - _BOTTOM - share * (_HEIGHT - _TOP - _BOTTOM)


def _y_axis(most: float, form: str) -> list[Markup]:
    parts = []
    for share in (0.0, 0.5, 1.0):
        parts.append(_tag("line", x1=_LEFT, x2=_WIDTH - _RIGHT, y1=_y(share), y2=_y(share), class_="grid"))
        parts.append(_text(_LEFT - 4, _y(share) + 4, form.format(share * most), "end"))
    return parts


def _legend(series: Mapping[str, Any]) -> list[Markup]:
    if len(series) < 2:
        return []
    parts, x = [], float(_LEFT)
    for number, name in enumerate(series):
        parts.append(_tag("rect", x=x, y=4, width=9, height=9, class_=f"series-{number}"))
        parts.append(_text(x + 13, 12, name))
        x += 30 + 6.2 * len(name)
    return parts


def _text(x: float, y: float, content: str, anchor: str = "start") -> Markup:
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}">{}</text>').format(x, y, anchor, content)


def _tag(name: str, **attributes: Any) -> Markup:
    values = {key.rstrip("_"): f"{value:.1f}" if isinstance(value, float) else str(value) for key, value in attributes.items()}
    return Markup("<{} {}/>").format(Markup(name), Markup(" ").join(Markup('{}="{}"').format(*pair) for pair in values.items()))


def _svg(height: float, parts: Sequence[Markup], alt: str) -> Markup:
    body = Markup("").join(parts)
    return Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}"><title>{}</title>{}</svg>').format(
        _WIDTH, round(height), escape(alt), alt, body
    )
