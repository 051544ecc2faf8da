"""Bar charts as SVG, readable on a light and on a dark page; nothing but text is needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from xml.sax.saxutils import escape

__all__ = ["Bars", "chart"]

_WIDTH, _LEFT, _RIGHT = 760, 250, 110
_BAR, _GAP, _TOP = 16, 14, 64
_STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328 }
.title { font-size: 15px; font-weight: 600 }
.pyrep { fill: #1a7f37 } .litestream { fill: #8250df } .bare { fill: #8c959f }
.target { stroke: #cf222e; stroke-width: 2; stroke-dasharray: 4 3 } .goal { fill: #cf222e }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3 }
  .pyrep { fill: #3fb950 } .litestream { fill: #a371f7 } .bare { fill: #6e7681 }
  .target { stroke: #ff7b72 } .goal { fill: #ff7b72 }
}
"""


@dataclass(frozen=True)
class Bars:
    """Hold the bars that are compared with each other: who and how much, and the target if any.

    Each group has a scale of its own, which begins at zero.
    """

    label: str
    unit: str
    values: Sequence[tuple[str, float]]
    target: float | None = None


def chart(title: str, groups: Sequence[Bars]) -> str:
    """Return a chart; a group without values says that nothing was measured."""
    parts, y = [_text(8, 22, title, "title"), *_legend(groups)], _TOP
    for group in groups:
        parts += _group(group, y)
        y += max(1, len(group.values)) * _BAR + _GAP
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {y}" width="{_WIDTH}" '
        f'height="{y}" role="img" aria-label="{escape(title, {chr(34): "&quot;"})}">'
        f"<style>{_STYLE}</style>\n" + "\n".join(parts) + "\n</svg>\n"
    )


def _text(x: float, y: float, words: str, style: str = "", anchor: str = "start") -> str:
    return (
        f'<text x="{x:.0f}" y="{y:.0f}" class="{style}" text-anchor="{anchor}">'
        f"{escape(words)}</text>"
    )


def _legend(groups: Sequence[Bars]) -> list[str]:
    names = list(dict.fromkeys(name for group in groups for name, _ in group.values))
    parts, x = [], 8
    for name in names:
        parts.append(f'<rect x="{x}" y="34" width="11" height="11" class="{name}"/>')
        parts.append(_text(x + 17, 44, name))
        x += 8 * len(name) + 40
    if any(group.target is not None for group in groups):
        parts.append(f'<line x1="{x}" y1="40" x2="{x + 14}" y2="40" class="target"/>')
        parts.append(_text(x + 20, 44, "target"))
    return parts


def _group(group: Bars, y: float) -> list[str]:
    middle = y + max(1, len(group.values)) * _BAR / 2 + 4
    parts = [_text(_LEFT - 10, middle, group.label, "", "end")]
    if not group.values:
        return [*parts, _text(_LEFT, middle, "not measured", "goal")]
    most = max([value for _, value in group.values] + [group.target or 0.0]) or 1.0
    scale = (_WIDTH - _LEFT - _RIGHT) / most
    for at, (name, value) in enumerate(group.values):
        top = y + at * _BAR
        length = max(1.0, value * scale)
        parts.append(
            f'<rect x="{_LEFT}" y="{top}" width="{length:.1f}" height="{_BAR - 3}" class="{name}"/>'
        )
        parts.append(_text(_LEFT + length + 6, top + _BAR - 5, f"{_short(value)} {group.unit}"))
    if group.target is not None:
        x, bottom = _LEFT + group.target * scale, y + len(group.values) * _BAR
        parts.append(f'<line x1="{x:.1f}" y1="{y - 4}" x2="{x:.1f}" y2="{bottom}" class="target"/>')
    return parts


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
