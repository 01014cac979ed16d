"""Figures: what they show is what the records and the audio say."""

import xml.etree.ElementTree as ET

import numpy as np
import pytest
from fastjukebox.bench import figures

RATE = 44100


def sine(hertz, seconds=1.0, loud=1.0):
    return (loud * np.sin(2 * np.pi * hertz * np.arange(round(seconds * RATE)) / RATE)).astype(np.float32)


def spread(middle):
    return {"p20": 0.9 * middle, "p50": middle, "p80": 1.2 * middle}


def scaled(axis, value, codes, network="18x128", decoder="native"):
    row = {"bench": "scaling", "row": f"{axis} {value} of {network}", "axis": axis, "value": value, "decoder": decoder}
    return row | {"codes_per_s": spread(codes), "us_per_step": spread(1e6 / codes)}


def stepped(row, floor, measured):
    figures = {"floor_us": spread(floor), "us_per_step": spread(measured), "percent": spread(100 * floor / measured)}
    return {"bench": "roofline", "row": row, **figures}


def texts(svg):
    return [element.text for element in ET.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]


@pytest.fixture
def drawn(monkeypatch):
    """Figures themselves in place of their SVG."""
    monkeypatch.setattr(figures, "_svg", lambda figure: figure)


def bars(axes):
    """Start and end of each error bar on the axes, in data units: [bars, 2, 2]."""
    return np.concatenate([segments for box in axes.containers for segments in [box.lines[2][0].get_segments()]])


def test_a_figure_is_small_and_the_same_each_time_in_both_colour_schemes():
    first, second = (figures.waveform(sine(220, 6.0), RATE) for _ in range(2))
    assert first == second and len(first) < 40_000
    before, rest = first.decode().split("<style>", 1)
    style, drawing = rest.split("</style>", 1)
    for light, dark in figures._THEME.values():
        assert light in style and dark in style and light not in before + drawing
    assert "var(--ink)" in drawing and "var(--series0)" in drawing
    assert {"time, s", "amplitude"} <= set(texts(first))


def test_a_waveform_shows_lowest_and_highest_of_5_seconds_on_fixed_axes(drawn):
    audio = np.concatenate([np.full(4 * RATE, 0.25), np.full(2 * RATE, -0.5)]).astype(np.float32)
    (axes,) = figures.waveform(audio, RATE).axes
    path = axes.collections[0].get_paths()[0].vertices
    assert (path[:, 1].min(), path[:, 1].max()) == (-0.5, 0.25) and path[:, 0].max() < 5.0
    assert axes.get_xlim() == (0, 5) and axes.get_ylim() == (-1, 1)


def test_a_mel_spectrogram_has_a_full_scale_sine_at_0_db_in_its_band():
    level = figures.mel(sine(1000.0), RATE)
    assert level.shape[0] == 128 and level.min() == -80
    band = figures.mel_centres(figures._MEL)[level.mean(axis=1).argmax()]
    assert abs(band - 1000) < 60 and -3 < level.max() < 1
    with pytest.raises(ValueError, match="44100 Hz, not of 22050 Hz"):
        figures.mel(sine(1000.0), 22050)


def test_both_spectrograms_have_the_same_axes_and_colours(drawn):
    top, full, bar = figures.mel_pair(sine(440, 2.0, 0.01), sine(440, 5.0), RATE).axes
    assert top.images[0].get_clim() == full.images[0].get_clim() == (-80, 0) == bar.get_ylim()
    assert top.get_xlim() == full.get_xlim() == (0, 5) and top.get_ylim() == full.get_ylim()
    # Two seconds do not fill five.
    assert top.images[0].get_extent()[1] < 2.05 < full.images[0].get_extent()[1]


def test_spectrograms_are_pngs_and_a_missing_one_says_so():
    svg = figures.mel_pair(None, sine(440, 5.0), RATE)
    assert svg.count(b"data:image/png;base64") == 2 and len(svg) < 200_000
    assert {"not yet measured", "top level alone", "upsampled", "frequency, kHz", "time, s", "dB"} <= set(texts(svg))
    assert "not yet measured" not in texts(figures.mel_pair(sine(220, 0.01), sine(440, 5.0), RATE))


def test_scaling_has_a_line_per_network_and_bars_from_p20_to_p80(drawn):
    records = [scaled("batch", n, 100 * n) for n in (8, 1, 2)] + [scaled("depth", 4, 7.0)]
    records += [scaled("batch", n, 10 * n, "72x128") for n in (1, 2)] + [{"row": "batch 4 of 18x128", "axis": "batch"}]
    figure = figures.scaling(records, "batch")
    (axes,) = figure.axes
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["18x128, native", "72x128, native"]
    assert bars(axes)[:, :, 0].tolist() == [[1, 1], [2, 2], [8, 8], [1, 1], [2, 2]]
    expected = [[0.9 * y, 1.2 * y] for y in (100, 200, 800, 10, 20)]
    np.testing.assert_allclose(bars(axes)[:, :, 1], expected)
    assert axes.get_xscale() == axes.get_yscale() == "log"
    low, high = axes.get_ylim()
    assert low < 9 and high > 960


def test_scaling_ticks_are_the_values_measured():
    svg = figures.scaling([scaled("context", n, 1000 - n / 16) for n in (512, 2048, 8192)], "context")
    assert {"512", "2,048", "8,192", "context, codes", "codes per second"} <= set(texts(svg))
    with pytest.raises(ValueError, match="no record of scaling over width"):
        figures.scaling([scaled("batch", 1, 5.0)], "width")


def test_memory_over_audio_is_in_megabytes(drawn):
    row = {"row": "audio 5 s of demo", "axis": "audio", "value": 5, "peak_bytes": 4e8, "codes_bytes": 3e5}
    (axes,) = figures.scaling([row, row | {"value": 60, "peak_bytes": 5e8}], "audio").axes
    assert [list(line.get_ydata()) for line in axes.lines] == [[400, 500], [0.3, 0.3]]
    assert axes.get_ylabel() == "memory, MB"


def test_roofline_has_measured_steps_beside_their_floors(drawn):
    what_if = {"row": "what-if card", "floor_us_at_full_bandwidth": 5.0, "estimated": True}
    (axes,) = figures.roofline([stepped("one", 100.0, 200.0), what_if, stepped("two", 30.0, 40.0)]).axes
    assert bars(axes)[:, :, 0].tolist() == [[90, 120], [27, 36], [180, 240], [36, 48]]
    assert [text.get_text() for text in axes.texts] == ["one – 50 %", "two – 75 %"]
    assert axes.get_xlabel() == "µs per step"
    with pytest.raises(ValueError, match="no record"):
        figures.roofline([what_if])
