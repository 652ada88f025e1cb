"""The options that change a detector for one run, as the command line has them."""

from dataclasses import fields
from typing import Any

import typer
from hypothesis import given
from hypothesis import strategies as st

from vovnet.cli import run_settings
from vovnet.results.run_options import RunSettings


@given(
    st.fixed_dictionaries(
        {},
        optional={
            "size": st.integers(1, 4000),
            "max_detections": st.integers(1, 4000),
            "score": st.floats(0, 1),
            "nms": st.floats(0, 1),
        },
    ),
    st.one_of(
        st.just({}),
        st.fixed_dictionaries(
            {"tile": st.integers(32, 4000)},
            optional={
                "overlap": st.floats(0, 0.9),
                "tile_full_image": st.booleans(),
                "merge": st.sampled_from(["auto", "nms", "nmm"]),
            },
        ),
    ),
)
def test_the_options_of_the_command_line_give_the_same_settings(first, second):
    settings = RunSettings(**first, **second)
    read: dict[str, Any] = {}
    app = typer.Typer()

    @app.command()
    def command(
        size: run_settings.Size = None,
        max_size: run_settings.MaxSize = None,
        max_detections: run_settings.MaxDetections = None,
        score: run_settings.Score = None,
        nms: run_settings.Nms = None,
        tile: run_settings.Tile = None,
        overlap: run_settings.Overlap = 0.2,
        tile_full_image: run_settings.TileFullImage = False,
        merge: run_settings.Merge = "auto",
    ) -> None:
        read.update(locals())

    app(settings.arguments, standalone_mode=False)
    assert RunSettings(**{one.name: read[one.name] for one in fields(settings)}) == settings
