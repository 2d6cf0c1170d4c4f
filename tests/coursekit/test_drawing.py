"""Shapes are short, well-formed SVG in the colours of the page."""

from xml.etree import ElementTree

from coursekit import drawing


def test_a_figure_is_well_formed_and_says_what_it_shows():
    parts = [
        drawing.text(1, 2, "words", mono=True),
        drawing.rect(0.004, -0.004, 1 / 3, 2, "query", 0.5),
        drawing.circle(1, 1, 2, "key"),
        drawing.line(0, 0, 1, 1),
        drawing.path("M0 0h1"),
        drawing.curve([(0, 0), (1, 2.50)], "bias", dash="3 4"),
    ]
    figure = ElementTree.fromstring(drawing.svg(10, 20, "all shapes", parts))
    assert figure.attrib["viewBox"] == "0 0 10 20"
    assert [each.tag for each in figure] == ["title", "text", "rect", "circle", "line", "path", "polyline"]
    assert figure[0].text == "all shapes"
    assert {name: figure[2].attrib[name] for name in ("x", "y", "width")} == {
        "x": "0",
        "y": "0",
        "width": "0.33",
    }
    assert figure[6].attrib["points"] == "0,0 1,2.5"
