"""``python -m vovnet.detection.train``: ``vovnet train`` for torchrun, which starts several processes of it."""

import argparse
import os

from vovnet.detection.data.user_transforms import load_transforms
from vovnet.detection.evaluation.tables import format_metrics
from vovnet.detection.training.claim import resume_mode
from vovnet.detection.training.engine import train
from vovnet.detection.training.from_data import recipe_or_data
from vovnet.detection.training.length import seconds_of
from vovnet.errors import one_line_errors


def main() -> None:
    """Parse the arguments and train."""
    parser = argparse.ArgumentParser(prog="python -m vovnet.detection.train", description="Train a detector.")
    parser.add_argument("recipe", help="the name of a shipped recipe, a YAML file, or a folder of data")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="such as solver.base_lr=0.01")
    parser.add_argument("--output", required=True, help="folder of the run")
    parser.add_argument("--resume", action="store_true", help="continue the run in --output")
    parser.add_argument("--auto-resume", action="store_true", help="continue the run in --output if there is one")
    parser.add_argument("--transforms", metavar="MODULE:FUNCTION", help="own transforms, before the recipe's")
    parser.add_argument("--show-batch", metavar="FILE.png", help="draw the first training images, after transforms")
    parser.add_argument("--overwrite", action="store_true", help="replace the run in --output")
    parser.add_argument("--device", help="such as cpu or cuda:0 (default: the GPU of this process, if there is one)")
    parser.add_argument("--time-limit", metavar="TIME", help="save and stop after 2h, 90m, …; --resume goes on")
    args = parser.parse_intermixed_args()
    with one_line_errors():
        mode = resume_mode(args.resume, args.auto_resume)
        recipe = recipe_or_data(args.recipe, args.overrides, args.output, resume=mode, device=args.device)
        limit = None if args.time_limit is None else seconds_of(args.time_limit)
        metrics = train(
            recipe,
            args.output,
            transforms=None if args.transforms is None else load_transforms(args.transforms),
            show_batch=args.show_batch,
            resume=mode,
            overwrite=args.overwrite,
            device=args.device,
            time_limit=limit,
        )
        if metrics and os.environ.get("RANK", "0") == "0":
            print(format_metrics(metrics))


if __name__ == "__main__":
    main()
