"""``python -m vovnet.detection.train`` and ``torchrun … -m vovnet.detection.train``: `vovnet train` for processes."""

import argparse

from vovnet.detection.engine import train
from vovnet.detection.recipe import load_recipe
from vovnet.errors import one_line_errors


def main() -> None:
    """Parse the arguments and train."""
    parser = argparse.ArgumentParser(prog="python -m vovnet.detection.train", description="Train a detector.")
    parser.add_argument("recipe", help="the name of a shipped recipe, or a YAML file")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as solver.base_lr=0.01")
    parser.add_argument("--output", required=True, help="the folder that the run is left in")
    parser.add_argument("--resume", action="store_true", help="go on from the run that stands in --output")
    parser.add_argument("--overwrite", action="store_true", help="replace the run that stands in --output")
    args = parser.parse_intermixed_args()
    with one_line_errors():
        recipe = load_recipe(args.recipe, args.overrides)
        train(recipe, args.output, resume=args.resume, overwrite=args.overwrite)


if __name__ == "__main__":
    main()
