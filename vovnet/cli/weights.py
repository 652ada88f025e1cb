"""``vovnet weights``: every published source of weights, and whether it answers."""

from __future__ import annotations

import json
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from vovnet.cli.options import AsJson

Names = Annotated[
    list[str] | None, typer.Argument(help="Names of weights or networks, or patterns such as '*vovnet39*'.")
]


class _ListsByDefault(TyperGroup):
    """Takes ``vovnet weights NAME`` for ``vovnet weights list NAME``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        first = args[0] if args else ""
        return super().parse_args(ctx, args if first in {*self.commands, *ctx.help_option_names} else ["list", *args])


commands = typer.Typer()
weights = typer.Typer(
    cls=_ListsByDefault,
    help="List every published source of weights, or ask which ones answer (needs the extra detection).",
)
commands.add_typer(weights, name="weights")


@weights.command("list")
def list_weights(names: Names = None, as_json: AsJson = False) -> None:
    """List sources: licence, published numbers, size, checksum, cache, and what was tested. Nothing is asked."""
    from vovnet.detection.zoo import listing
    from vovnet.detection.zoo.sources import all_sources, select

    chosen = select(all_sources(), names or [])
    typer.echo(listing.as_json(chosen) if as_json else listing.as_text(chosen))


@weights.command()
def check(
    names: Names = None,
    timeout: Annotated[float, typer.Option("--timeout", help="Seconds that each source has to answer.")] = 10.0,
    as_json: AsJson = False,
) -> None:
    """Ask each source whether it answers, without downloading it. The exit code is 1 if one does not.

    Without NAMES, those of which no file is published are left out.
    """
    from vovnet.detection.zoo.availability import check_sources
    from vovnet.detection.zoo.sources import all_sources, select
    from vovnet.terminal.text import printable

    chosen = select(all_sources(), names or [])
    answers = []
    for answer in check_sources(chosen if names else [one for one in chosen if one.place], timeout=timeout):
        answers.append(answer)
        if not as_json:
            typer.echo(printable(str(answer)))
    if as_json:
        typer.echo(json.dumps([one.to_json() for one in answers], indent=2))
    raise typer.Exit(0 if all(one.answers for one in answers) else 1)
