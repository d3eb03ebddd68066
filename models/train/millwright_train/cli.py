"""The program `millwright-train`.

Owns arguments, files and what is printed. Exit status 0 fine, 1 failed, 2 wrong use, as with `millwright`.
"""

import argparse
import json
import pathlib
import sys
from datetime import datetime, timezone

from . import __version__, examples, features, history, kinds, pack, training, verdicts
from .errors import TrainError, UsageError


def main(arguments=None):
    """Runs the command and returns its exit status."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except TrainError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser():
    parser = argparse.ArgumentParser(prog="millwright-train", description="Train a model for a Millwright gateway.")
    parser.add_argument("--version", action="version", version=f"millwright-train {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _train_parser(commands)
    listing = commands.add_parser("kinds", help="list what can be trained")
    listing.set_defaults(run=_kinds)
    worked = commands.add_parser("examples", help="train the worked examples of one library on the history beside them")
    worked.add_argument("--library", required=True, choices=["sklearn", "torch", "keras"])
    worked.add_argument("--kind", action="append", default=[], help="only this kind; may be given several times")
    worked.add_argument(
        "--history", type=pathlib.Path, required=True, metavar="DIR", help="folder of the two histories"
    )
    worked.add_argument("--out", type=pathlib.Path, required=True, metavar="DIR")
    worked.set_defaults(run=_examples)
    return parser


def _train_parser(commands):
    train = commands.add_parser("train", help="train on a historian's export, check the export and pack it")
    train.add_argument("--kind", required=True, help="see `millwright-train kinds`")
    train.add_argument("--data", type=pathlib.Path, required=True, metavar="FILE", help="CSV or Parquet, wide or long")
    train.add_argument("--name", required=True, help="the model's name")
    train.add_argument("--version", type=int, default=1, help="a newer model has a larger one")
    train.add_argument("--out", type=pathlib.Path, required=True, metavar="DIR")
    train.add_argument("--channels", metavar="A,B,…", help="keep these columns, in this order")
    train.add_argument("--asset", help="the asset to take from an export of several")
    train.add_argument("--label", metavar="COLUMN", help="the column with the state (supervised kinds only)")
    train.add_argument(
        "--alerts", type=pathlib.Path, metavar="FILE", help="label by the verdicts in `millwright export --what alerts`"
    )
    train.add_argument("--normal-label", default="normal", metavar="TEXT", help="its text for a healthy machine")
    train.add_argument("--unit", action="append", default=[], metavar="CHANNEL=UNIT", help="may be given several times")
    train.add_argument("--samples", type=int, default=training.SAMPLES, help="rows per window")
    train.add_argument("--stride", type=int, help="rows between windows to train on")
    train.add_argument("--features", metavar="A,B,…", help=f"of {', '.join(features.FEATURES)}; default by kind")
    train.add_argument(
        "--margin", type=float, help="threshold over the highest held-back healthy score; default by kind"
    )
    train.add_argument("--trees", choices=["native", "gemm"], default="native", help="how trees are written")
    train.add_argument(
        "--assets", action="append", default=[], metavar="PATTERN", help="assets the packed model is for"
    )
    train.add_argument("--millwright", metavar="PROGRAM", help="the gateway's program; default $MILLWRIGHT, then PATH")
    train.add_argument("--no-pack", action="store_true", help="do not ask the gateway's engine")
    train.set_defaults(run=_train)


def _train(options):
    kind = kinds.find(options.kind)
    # Found before a training that may take minutes.
    millwright = None if options.no_pack else pack.program(options.millwright)
    channels = None if options.channels is None else _names(options.channels)
    rows = history.read(options.data, channels=channels, label=options.label, asset=options.asset)
    if options.alerts is not None:
        if options.label is not None:
            raise UsageError("--alerts and --label both give labels: choose one")
        rows = verdicts.label(rows, options.alerts, asset=options.asset, normal=options.normal_label)
    trained = training.train(kind, rows, _settings(kind, options))
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"{options.name}-{options.version}.onnx"
    packed = None
    path.write_bytes(trained.onnx)
    try:
        packed = millwright and pack.pack(millwright, path, options.out, options.assets)
    except TrainError:
        # What no gateway would run is not left for one to be given.
        path.unlink()
        raise
    for line in _summary(kind, rows, trained, path):
        print(line)
    if packed is not None:
        print(f"packed: {packed}")
    elif not options.no_pack:
        print("not packed: there is no `millwright` here; run `millwright model pack` on this file where there is one")


def _names(text):
    return [name.strip() for name in text.split(",")]


def _settings(kind, options):
    units = []
    for text in options.unit:
        channel, separator, unit = text.partition("=")
        if not separator or not unit:
            raise UsageError(f"--unit {text}: write it as CHANNEL=UNIT")
        units.append((channel, unit))
    for value, least, name in ((options.samples, 2, "samples"), (options.stride or 1, 1, "stride")):
        if value < least:
            raise UsageError(f"--{name} {value}: at least {least}")
    return training.Settings(
        name=options.name,
        version=options.version,
        samples=options.samples,
        stride=options.stride,
        features=None if options.features is None else features.check(_names(options.features)),
        margin=options.margin,
        trees=options.trees,
        normal_label=options.normal_label,
        units=tuple(units),
        created=datetime.now(timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
        trained_from=f"{kind.name} on {options.data.name}",
    )


def _summary(kind, rows, trained, path):
    runs = int(rows.run[-1]) + 1
    yield (
        f"read {len(rows.values)} rows of {len(rows.channels)} channels every {rows.interval_ms:g} ms, {rows.rows_missing} left out, "
        f"{runs - 1} gaps"
    )
    yield (
        f"trained {kind.name} ({trained.model.library}) on {trained.windows_trained} windows, {trained.windows_held_back} held back, "
        f"threshold {trained.scale.threshold:.4g}"
    )
    yield f"checked with onnxruntime: {trained.differences}"
    for note in trained.notes:
        yield f"note: {note}"
    yield f"wrote {path} ({len(trained.onnx)} bytes)"


def _kinds(_):
    for kind in kinds.KINDS.values():
        print(f"{kind.name:20} {kind.library:8} {kind.summary}")


def _examples(options):
    chosen = [kinds.find(name) for name in options.kind] or list(kinds.KINDS.values())
    options.out.mkdir(parents=True, exist_ok=True)
    for kind in (kind for kind in chosen if kind.library == options.library):
        made = examples.make(kind, options.history)
        (options.out / f"{kind.name}.onnx").write_bytes(made.trained.onnx)
        record = json.dumps(made.record, separators=(",", ":"))
        (options.out / f"{kind.name}.json").write_text(record + "\n", encoding="utf-8")
        print(f"{kind.name:20} {len(made.trained.onnx):7} bytes  {made.trained.differences}  {made.found}")


if __name__ == "__main__":
    sys.exit(main())
