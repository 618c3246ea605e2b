"""Styles of strategies can be told apart, also by colour-blind readers and in grey."""

from itertools import combinations

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.font_manager import FontProperties, findfont

from heteroring.figures.style import LAYOUTS, STRATEGIES, look, ordered, paper_style
from heteroring.results.strategy import name_of

# Machado, Oliveira and Fernandes 2009, severity 1.0, on linear RGB
DEFICIENCIES = {
    "none": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
TO_XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)
WHITE = np.array([0.95047, 1.0, 1.08883])


def lab(colour, deficiency: str = "none") -> np.ndarray:
    channels = np.array(to_rgb(colour))
    linear = np.where(channels <= 0.04045, channels / 12.92, ((channels + 0.055) / 1.055) ** 2.4)
    seen = np.clip(np.array(DEFICIENCIES[deficiency]) @ linear, 0, 1)
    ratio = TO_XYZ @ seen / WHITE
    x, y, z = np.where(ratio > 0.008856, np.cbrt(ratio), 7.787 * ratio + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("deficiency", DEFICIENCIES)
def test_colours_are_far_apart_for_every_reader(deficiency):
    colours = [look(strategy).colour for strategy in STRATEGIES]
    assert len(set(colours)) == len(STRATEGIES) == 10
    for one, other in combinations(colours, 2):
        assert np.linalg.norm(lab(one, deficiency) - lab(other, deficiency)) >= 15, (one, other)


def test_layouts_differ_in_grey_and_in_stroke():
    for allocator in ("even", "uneven", "lut", "formula", "balanced"):
        contiguous, zigzag = (look(name_of(layout, allocator)) for layout in LAYOUTS)
        assert lab(contiguous.colour)[0] - lab(zigzag.colour)[0] >= 25
        assert contiguous.line()["linestyle"] != zigzag.line()["linestyle"]
        assert contiguous.line()["markerfacecolor"] != zigzag.line()["markerfacecolor"]
        assert contiguous.bar()["hatch"]
        assert not zigzag.bar()["hatch"]
        assert contiguous.marker == zigzag.marker


def test_allocators_have_their_own_markers():
    assert len({look(strategy).marker for strategy in STRATEGIES}) == 5


def test_legends_have_one_order():
    assert ordered(reversed(STRATEGIES)) == list(STRATEGIES)
    assert ordered(["zigzag/even", "contiguous/lut", "zigzag/even"]) == ["contiguous/lut", "zigzag/even"]


@pytest.mark.parametrize("strategy", ["striped/even", "zigzag/best", "zigzag", ""])
def test_unknown_strategy_is_refused(strategy):
    with pytest.raises(ValueError, match=f"strategy '{strategy}' is unknown: a layout "):
        look(strategy)


def test_the_papers_font_comes_with_matplotlib():
    with paper_style():
        assert "STIXGeneral" in findfont(FontProperties(), fallback_to_default=False)
