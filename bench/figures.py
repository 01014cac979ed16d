"""Figures of the report as SVG: waveforms, mel spectrograms, scaling, roofline. Needs the `plot` extra.

A figure holds light and dark colours, as CSS variables. Text stays text and spectrograms are PNGs inside, so that files
are small. Figures have the width of a phone's screen.
"""

from __future__ import annotations

import io
import math
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, NullFormatter, NullLocator

from ..distill.mel import FLOOR, MelConfig, log_mel, mel_centres

# What is shown of each piece, as in Figure 5 of the paper.
SECONDS = 5.0
AXES = {
    "batch": "pieces side by side",
    "depth": "layers",
    "width": "width",
    "context": "context, codes",
    "threads": "threads",
    "audio": "audio, s",
}
# Light, dark. The light colours stand in the drawing until it is written.
_THEME = {
    "ink": ("#1c1c1e", "#e6e6ea"),
    "faint": ("#c9c9cf", "#48484e"),
    "series0": ("#0060a8", "#5ab4f5"),
    "series1": ("#b84a00", "#ff9d5c"),
    "series2": ("#007a55", "#3fcf9f"),
    "series3": ("#8a3f8f", "#d896dc"),
    "series4": ("#7a6a00", "#d6c23a"),
    "series5": ("#a8003c", "#ff7fa6"),
}
_COLOUR = {name: light for name, (light, _) in _THEME.items()}
_SERIES = [light for name, (light, _) in _THEME.items() if name.startswith("series")]
_MARKERS = "os^Dv*"
_STYLE: dict[Any, Any] = {
    "axes.edgecolor": _COLOUR["ink"],
    "axes.grid": True,
    "axes.labelcolor": _COLOUR["ink"],
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.axisbelow": True,
    "axes.titlelocation": "left",
    "axes.titlesize": 9.0,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8.5,
    "grid.color": _COLOUR["faint"],
    "grid.linewidth": 0.5,
    "legend.frameon": False,
    "savefig.facecolor": "none",
    "svg.fonttype": "none",
    "svg.hashsalt": "fastjukebox",
    "text.color": _COLOUR["ink"],
    "xtick.color": _COLOUR["ink"],
    "ytick.color": _COLOUR["ink"],
}
_MEL = MelConfig(sample_rate=44100, n_fft=2048, hop=1024, mels=128, low=30.0, high=15000.0)
_TICKS_HZ = (0.5, 1, 2, 4, 8)
_styled = matplotlib.rc_context(_STYLE)


def _figure(width: float, height: float, columns: int = 1) -> tuple[Figure, list[Axes]]:
    """A figure of so many inches and its axes, without pyplot: no window, no global state."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, list(figure.subplots(1, columns, squeeze=False, sharex=True, sharey=True)[0])


def _svg(figure: Figure) -> bytes:
    """The figure with its colours as variables, the same bytes for the same figure."""
    file = io.StringIO()
    # No dates and no addresses.
    figure.savefig(file, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    text = file.getvalue()
    for name, (light, _) in _THEME.items():
        text = text.replace(light, f"var(--{name})")
    light, dark = ("".join(f"--{name}:{pair[shade]};" for name, pair in _THEME.items()) for shade in (0, 1))
    style = f"<style>:root{{{light}}}@media (prefers-color-scheme: dark){{:root{{{dark}}}}}</style>"
    before, opening, after = text.partition("<defs>")
    return f"{before}{style}{opening}{after}".encode()


@_styled
def waveform(audio: np.ndarray, sample_rate: int) -> bytes:
    """The first 5 s of `audio` [samples] in [-1, 1]: lowest and highest sample of each 10 ms, on fixed axes."""
    samples = audio[: round(SECONDS * sample_rate)]
    size = max(1, sample_rate // 100)
    edges = np.arange(0, len(samples), size)
    low, high = np.minimum.reduceat(samples, edges), np.maximum.reduceat(samples, edges)
    figure, (axis,) = _figure(4.4, 1.4)
    axis.fill_between(edges / sample_rate, low, high, color=_COLOUR["series0"], linewidth=0.4)
    axis.set(xlim=(0, SECONDS), ylim=(-1, 1), xlabel="time, s", ylabel="amplitude", yticks=[-1, 0, 1])
    return _svg(figure)


def mel(audio: np.ndarray, sample_rate: int) -> np.ndarray:
    """dB [128, frames] of the first 5 s of `audio` [samples]; 0 dB is a full-scale sine, -80 dB the floor.

    Raises:
        ValueError: the rate is not 44.1 kHz.
    """
    if sample_rate != _MEL.sample_rate:
        raise ValueError(f"spectrograms are drawn of {_MEL.sample_rate} Hz, not of {sample_rate} Hz")
    samples = torch.from_numpy(np.ascontiguousarray(audio[: round(SECONDS * sample_rate)], dtype=np.float32))
    # A clip shorter than a window is followed by silence.
    samples = torch.nn.functional.pad(samples, (0, max(0, _MEL.n_fft - len(samples))))
    return log_mel(samples[None], _MEL)[0].numpy()


@_styled
def mel_pair(top: np.ndarray | None, full: np.ndarray | None, sample_rate: int) -> bytes:
    """Mel spectrograms of the top level decoded alone and of the upsampled piece (Figure 6 of the paper) on the same
    axes and colours, audio [samples] at 44.1 kHz; one that is None stays empty.

    Raises:
        ValueError: another rate.
    """
    figure, axes = _figure(4.6, 2.3, 2)
    image = None
    for axis, title, audio in zip(axes, ("top level alone", "upsampled"), (top, full), strict=True):
        axis.set_title(title)
        axis.grid(False)
        axis.set(ylim=(-0.5, _MEL.mels - 0.5), xlabel="time, s")
        if audio is None:
            axis.text(SECONDS / 2, _MEL.mels / 2, "not yet measured", ha="center", va="center")
            continue
        level = mel(audio, sample_rate)
        extent = (0, level.shape[1] * _MEL.hop / sample_rate, -0.5, _MEL.mels - 0.5)
        image = axis.imshow(
            level, extent=extent, vmin=FLOOR, vmax=0, cmap="magma", aspect="auto", origin="lower", interpolation="none"
        )
    axes[0].set_xlim(0, SECONDS)
    places = np.interp([1000 * tick for tick in _TICKS_HZ], mel_centres(_MEL), np.arange(_MEL.mels))
    axes[0].set_yticks(places, labels=[f"{tick:g}" for tick in _TICKS_HZ])
    axes[0].set_ylabel("frequency, kHz")
    if image is not None:
        bar = figure.colorbar(image, ax=axes, label="dB", aspect=30)
        bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]
    return _svg(figure)


def _plain(axis: Any, values: Sequence[float]) -> None:
    """Ticks of a logarithmic axis: these values, as they are written."""
    axis.set_major_locator(FixedLocator(sorted(set(values))))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axis.set_minor_locator(NullLocator())


def _ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten from `low` to `high`; of many, the powers alone."""
    powers = [10.0**power for power in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
    steps = [factor * power for power in powers for factor in (1, 2, 5) if low <= factor * power <= high]
    return steps if len(steps) < 9 else [step for step in steps if step in powers]


@_styled
def scaling(records: Sequence[dict[str, Any]], axis_name: str) -> bytes:
    """Codes per second over one axis of the scaling records, both logarithmic; error bars are p20 to p80. A line per
    network and decoder. Over "audio": bytes of memory.

    Raises:
        ValueError: no record has the axis.
    """
    series: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        if record.get("axis") == axis_name and ("codes_per_s" in record or "peak_bytes" in record):
            network, decoder = record["row"].partition(" of ")[2], "" if axis_name == "audio" else record["decoder"]
            label = network if decoder in network else f"{network}, {decoder}".removeprefix(", ")
            series[label].append(record)
    if not series:
        raise ValueError(f"no record of scaling over {axis_name}")
    figure, (axis,) = _figure(4.4, 2.5 + 0.2 * len(series))
    drawn: list[float] = []
    for place, (label, found) in enumerate(series.items()):
        found.sort(key=lambda record: record["value"])
        x = [record["value"] for record in found]
        style: dict[str, Any] = {"color": _SERIES[place % len(_SERIES)], "marker": _MARKERS[place % len(_MARKERS)]}
        style |= {"markersize": 4.5, "linewidth": 1.3}
        if axis_name == "audio":
            for name, words, line in (("peak_bytes", "peak memory", "-"), ("codes_bytes", "codes", "--")):
                y = [record[name] / 1e6 for record in found if name in record]
                axis.plot(x[: len(y)], y, line, label=f"{words}, {label}".removesuffix(", "), **style)
                drawn += y
            continue
        low, mid, high = (np.array([record["codes_per_s"][q] for record in found]) for q in ("p20", "p50", "p80"))
        axis.errorbar(x, mid, yerr=(mid - low, high - mid), capsize=2.5, label=label, **style)
        drawn += [*low, *high]
    axis.set_xscale("log")
    axis.set_yscale("log")
    _plain(axis.xaxis, [record["value"] for found in series.values() for record in found])
    limits = min(drawn) / 1.4, max(drawn) * 1.4
    _plain(axis.yaxis, _ticks(*limits))
    axis.set(ylim=limits, xlabel=AXES[axis_name])
    axis.set_ylabel("memory, MB" if axis_name == "audio" else "codes per second")
    figure.legend(loc="outside upper left")
    return _svg(figure)


@_styled
def roofline(records: Sequence[dict[str, Any]]) -> bytes:
    """What a step takes against its floor, the time to read its bytes once: us, p20 to p80, a row per record.

    Raises:
        ValueError: no record has both.
    """
    rows = [record for record in records if "us_per_step" in record and "floor_us" in record]
    if not rows:
        raise ValueError("no record of a step and its floor")
    figure, (axis,) = _figure(4.4, 0.9 + 0.42 * len(rows))
    axis.set_xscale("log")
    for name, label, mark, colour in (
        ("floor_us", "floor: bytes / read bandwidth", "|", _COLOUR["series1"]),
        ("us_per_step", "measured", "o", _COLOUR["series0"]),
    ):
        low, mid, high = (np.array([record[name][q] for record in rows]) for q in ("p20", "p50", "p80"))
        axis.errorbar(
            mid, range(len(rows)), xerr=(mid - low, high - mid), fmt=mark, color=colour, label=label, markersize=6
        )
    left = min(record[name]["p20"] for record in rows for name in ("floor_us", "us_per_step"))
    for place, record in enumerate(rows):
        share = f" – {record['percent']['p50']:.0f} %" if "percent" in record else ""
        axis.annotate(
            record["row"] + share,
            (left, place),
            (0, 5),
            textcoords="offset points",
            fontsize=7.5,
            annotation_clip=False,
        )
    axis.set(ylim=(len(rows) - 0.5, -0.9), yticks=[], xlabel="µs per step")
    axis.spines["left"].set_visible(False)
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    figure.legend(loc="outside upper left", ncols=2)
    return _svg(figure)
