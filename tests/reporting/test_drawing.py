"""Pictures of networks whose names are no plain text."""

import warnings

from matplotlib.figure import Figure

from amcsearch.reporting.drawing import standalone_svg


def test_control_characters_in_a_name_are_text_in_the_picture() -> None:
    figure = Figure()
    figure.add_subplot().set_xticks([0.0], ["a\x1b[31m\x07<b>"])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        svg = standalone_svg(figure, "names")
    assert r"a\x1b[31m\x07&lt;b&gt;" in svg
    assert "\x1b" not in svg
