"""A run's HTML report: one self-contained file with clips, curves and tables."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2

from ...core.text_files import write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PAGE = """\
<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{{ title }}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>
 body { font: 16px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; color: #1c2230 }
 table { border-collapse: collapse; margin: 1rem 0 } th, td { padding: .3rem .7rem; border-bottom: 1px solid #d5d9e2 }
 td.number { text-align: right; font-variant-numeric: tabular-nums } caption, figcaption { color: #5a6376 }
 .clips { display: grid; grid-template-columns: repeat(auto-fill, minmax(11rem, 1fr)); gap: 1rem }
 figure { margin: 0 } video, .clips img { width: 100%; image-rendering: pixelated; border-radius: 6px }
 svg { max-width: 100%; height: auto }
</style></head><body>
<h1>{{ title }}</h1>
{% for paragraph in introduction %}<p>{{ paragraph }}</p>{% endfor %}
{% for section in sections %}
<h2>{{ section.title }}</h2>
{% for paragraph in section.paragraphs %}<p>{{ paragraph }}</p>{% endfor %}
{% if section.table %}
<table><tr>{% for name in section.table[0] %}<th>{{ name }}</th>{% endfor %}</tr>
{% for row in section.table[1:] %}<tr>
{% for cell in row %}<td{% if cell is number %} class="number"{% endif %}>{{ cell }}</td>{% endfor %}</tr>{% endfor %}
</table>{% endif %}
{% if section.svg %}{{ section.svg | safe }}{% endif %}
{% if section.clips %}<div class="clips">
{% for clip in section.clips %}<figure>
<video src="{{ clip.source }}" autoplay loop muted playsinline controls></video>
<figcaption>{{ clip.caption }}</figcaption></figure>{% endfor %}
</div>{% endif %}
{% endfor %}
</body></html>
"""


@dataclass
class Clip:
    """A video of the report; ``path`` is embedded in the page."""

    path: Path
    caption: str

    @property
    def source(self) -> str:
        return "data:video/mp4;base64," + base64.b64encode(self.path.read_bytes()).decode()


@dataclass
class Section:
    """A heading and what stands below it; the first row of ``table`` is its header."""

    title: str
    paragraphs: list[str] = field(default_factory=list)
    table: list[list] = field(default_factory=list)
    svg: str = ""
    clips: list[Clip] = field(default_factory=list)


def write_report(path: Path, title: str, introduction: list[str], sections: list[Section]) -> Path:
    """Write the page whole or not at all; text is escaped. Returns ``path``."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    html = environment.from_string(PAGE).render(title=title, introduction=introduction, sections=sections)
    write_text(path, html)
    return path


def curve(stats: list[dict], name: str, title: str) -> str:
    """The course of ``name`` over the steps of `stats.jsonl`, as SVG, with a running mean."""
    steps, values = zip(*[(line["step"], line[name]) for line in stats if name in line])
    with _drawing(xlabel="step", ylabel=name, title=title, yscale="log") as (axes, svg):
        axes.plot(steps, values, color="#b8c4de", linewidth=1)
        axes.plot(steps, running_mean(values, max(1, len(values) // 20)), color="#2c4a9a", linewidth=2)
    return svg.getvalue()


def curves(series: dict[str, tuple[Sequence[float], Sequence[float]]], **settings: Any) -> str:
    """Named lines (x, y) as SVG.

    Args:
        settings: of matplotlib's axes, such as title, xlabel, ylabel, xscale, ylim.
    """
    with _drawing(**settings) as (axes, svg):
        for name, (x, y) in series.items():
            axes.plot(x, y, label=name, marker="o", markersize=3)
        axes.legend(frameon=False)
    return svg.getvalue()


@contextmanager
def _drawing(**settings: Any) -> Iterator[tuple[Axes, io.StringIO]]:
    """Axes to draw on, and where the SVG is found after the block."""
    from matplotlib.figure import Figure

    figure, whole, svg = Figure(figsize=(8, 3), layout="constrained"), io.StringIO(), io.StringIO()
    axes = figure.subplots()
    yield axes, svg
    axes.set(**settings)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(whole, format="svg")
    svg.write(whole.getvalue()[whole.getvalue().index("<svg") :])


def running_mean(values: tuple[float, ...], width: int) -> list[float]:
    """Mean of the last ``width`` values at every point."""
    return [sum(part) / len(part) for i in range(len(values)) if (part := values[max(0, i - width + 1) : i + 1])]
