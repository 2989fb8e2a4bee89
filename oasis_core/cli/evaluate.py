"""``oasis evaluate``: score restored clips against their ground truth, beside others' scores."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from ..evaluation import report
from ..evaluation.clips import ClipFile, clips_in, pair_clips
from ..outputs import check_folder

if TYPE_CHECKING:
    from ..evaluation.score import Judge

Pairs = dict[str, tuple[Path, Path]]


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = commands.add_parser("evaluate", help="score restored clips against their ground truth")
    parser.add_argument("truths", type=Path, metavar="GT_DIR", help="folder of ground-truth clips")
    parser.add_argument(
        "outputs",
        type=Path,
        metavar="OUT_DIR",
        help="folder of outputs with the same names (write them with ffv1 or png)",
    )
    parser.add_argument(
        "--baseline", action="append", default=[], metavar="NAME=JSON_OR_DIR",
        help="another's scores (an earlier --json file) or outputs (a folder) to compare with; may be repeated",
    )  # fmt: skip
    parser.add_argument("--json", type=Path, metavar="FILE", help="write every score there")
    parser.add_argument("--clips", default="*", metavar="GLOB", help="only clips of such names, for example 'vid4_*'")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the table, clip by clip as they are done."""
    report.check_packages()
    from ..evaluation.score import Judge

    pairs = pair_clips(args.truths, args.outputs, args.clips)
    baselines = dict(_named(text) for text in args.baseline)
    if args.json is not None:
        check_folder(args.json)
    known = {name: _known_mean(name, source, pairs) for name, source in baselines.items() if not source.is_dir()}
    to_score = {name: _complete(name, source, pairs) for name, source in baselines.items() if source.is_dir()}
    judge, width = Judge(), max(map(len, (*pairs, *baselines, report.MEAN)))
    print(report.table_head(width))
    clips = {}
    for name, scores in _scored(judge, pairs):
        clips[name] = scores
        print(report.table_row(name, scores, width), flush=True)
    mean = report.mean(clips.values())
    print(report.table_row(report.MEAN, mean, width), flush=True)
    means = {}
    for name in baselines:  # in the order that they were given
        means[name] = known[name] if name in known else report.mean(dict(_scored(judge, to_score[name])).values())
        print(report.table_row(name, means[name], width), flush=True)
    print(report.LEGEND)
    if args.json is not None:
        result = {"clips": clips, "mean": mean, "baselines": means}
        args.json.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return 0


def _scored(judge: Judge, pairs: Pairs) -> Iterator[tuple[str, dict[str, float]]]:
    for name, (truth, output) in pairs.items():
        try:
            yield name, judge.score(ClipFile(truth), ClipFile(output))
        except ValueError as e:
            raise ValueError(f"{name}: {e}") from None


def _named(text: str) -> tuple[str, Path]:
    """Name and place of ``NAME=JSON_OR_DIR``. Raises ValueError, or FileNotFoundError where nothing is there."""
    name, equals, place = text.partition("=")
    if not (name and equals and place):
        raise ValueError(f"baseline is {text!r}; give NAME=FILE.json or NAME=FOLDER")
    if not Path(place).exists():
        raise FileNotFoundError(f"baseline {name} not found: {place}")
    return name, Path(place)


def _known_mean(name: str, source: Path, pairs: Pairs) -> dict[str, float]:
    return report.mean_of(report.read_scores(source, name), pairs, name)


def _complete(name: str, folder: Path, pairs: Pairs) -> Pairs:
    """The baseline's outputs of the same clips. Raises ValueError where one is missing."""
    outputs = clips_in(folder)
    if missing := [clip for clip in pairs if clip not in outputs]:
        raise ValueError(f"baseline {name} has no output of {', '.join(missing)} in {folder}")
    return {clip: (truth, outputs[clip]) for clip, (truth, _) in pairs.items()}
