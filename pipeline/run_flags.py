"""The flags of `run`, and the configuration that they give."""

from __future__ import annotations

import argparse
from typing import Any

from pipeline import api
from pipeline.config import read_toml
from pipeline.flags import add_command, add_root, add_runner, byte_count, storage_values
from pipeline.models import parse_description
from pipeline.models.named import HIGH_ACCURACY, NAMED
from pipeline.sources.selection import ORDERS

MODEL_INPUT = """JSON file that describes its input where its graph does not: width, height, layout (NHWC, NCHW), dtype
(uint8, float32), scale, mean, std, channel_order (RGB, BGR), output, token"""


def add_run(commands: Any) -> argparse.ArgumentParser:
    """The parser of `run`."""
    run = add_command(commands, "run", "audit a folder or bucket of images")
    run.add_argument(
        "sources",
        nargs="*",
        help="folders, archives, videos, lists, COCO, YOLO YAML, images; or in s3:// and minio://server/",
    )
    run.add_argument(
        "--test", action="append", metavar="SOURCE", help="one more source, whose split is test; may be repeated"
    )
    run.add_argument(
        "--config", help="TOML file with any of these and more: its keys are those of Python's help(pipeline.run)"
    )
    run.add_argument(
        "--accept-empty", action="store_true", help="a source that had images may have none now: they are removed"
    )
    rule = run.add_argument_group("splits and labels (by folder names unless told otherwise)")
    rule.add_argument("--labels", help="CSV or Parquet with filename and label, split or a box; or a COCO file")
    rule.add_argument("--pattern", help="regular expression on the path with the groups label, split or both")
    _add_boxes(run)
    _add_selection(run)
    _add_model(run)
    search = run.add_argument_group("search")
    search.add_argument("--space", choices=("keep", "new"), help="keep the trained space while it fits, or train anew")
    search.add_argument("--threshold", type=float, help="fixed copy similarity of candidates instead of the rule")
    _add_part(run)
    add_runner(run)
    add_root(run)
    run.add_argument("--delete-img", action="store_true", help="once done, remove all images of the sync folder")
    run.add_argument("--delete-tar", action="store_true", help="once done, remove all archives of the sync folder")
    run.add_argument("--json", action="store_true", help="print the summary as JSON")
    return run


def _add_model(run: argparse.ArgumentParser) -> None:
    model = run.add_argument_group("model")
    which = model.add_mutually_exclusive_group()
    which.add_argument("--model", help=f"ONNX or ORT file, or one of {', '.join(NAMED)}, instead of the default model")
    which.add_argument("--high-accuracy", action="store_true", help="the larger variant of the default model")
    model.add_argument("--model-cache", help="folder of the named models' files (default: the user's cache folder)")
    model.add_argument("--model-input", help=MODEL_INPUT)
    model.add_argument(
        "--embeddings", help=".npy (n, d) in the order of the listing, or Parquet with names, instead of a model"
    )


def _add_part(run: argparse.ArgumentParser) -> None:
    part = run.add_argument_group("a part of the work: --until and offsets [min, max) extract and publish nothing")
    part.add_argument("--until", choices=("features", "tables"), help="features: list and extract, no more")
    part.add_argument(
        "--from",
        dest="start",
        choices=("sources", "features"),
        help="features: audit what is extracted, list nothing; the sources may be away",
    )
    part.add_argument("--min-offset", type=int, help="first offset in the catalog (default: 0)")
    part.add_argument("--max-offset", type=int, help="offset behind the last one (default: the end)")
    part.add_argument("--shard-size", type=int, help="images per shard (default: by the size of the snapshot)")
    part.add_argument(
        "--max-failed-share",
        type=float,
        metavar="SHARE",
        help="of images that may be missing, denied or the like in an audit that is published (default: 0.01)",
    )


def _add_boxes(run: argparse.ArgumentParser) -> None:
    boxes = run.add_argument_group("boxes in place of whole images")
    boxes.add_argument(
        "--bounding-box",
        metavar="BOX",
        help="row_y=0,col_x=0,height=9,width=9 of every image; xywh_bbox or rotated (of the labels); face, ocr, object",
    )
    boxes.add_argument("--box-model", metavar="FILE", help="YOLO-style ONNX file that finds the objects")


def _add_selection(run: argparse.ArgumentParser) -> None:
    select = run.add_argument_group("which images (the others are counted and have no row)")
    select.add_argument("--num-images", type=int, help="at most so many")
    select.add_argument("--order", choices=ORDERS, help="the first of the sorted listing, or a sample that stays")
    select.add_argument("--find-regex", help="regular expression searched in each name")
    select.add_argument("--subset", metavar="FILE", help="text file of names or whole paths, one per line")
    select.add_argument(
        "--min-file-size", type=byte_count, metavar="BYTES", help="of a file or the member of an archive: 10000 or 10kB"
    )
    select.add_argument("--tar-only", action="store_true", help="images in archives alone")
    select.add_argument("--fps", type=float, help="frames of videos, so many a second (default: keyframes)")
    select.add_argument("--max-frames", type=int, help="of each video at most so many, the first ones")


def config_values(options: argparse.Namespace) -> dict[str, Any]:
    """The configuration that a command line means: the TOML file, then the flags over it."""
    values: dict[str, Any] = {}
    if getattr(options, "config", None):
        values = read_toml(api.read_file(options.config, storage_values(options)), options.config)
    given: dict[tuple[str, ...], Any] = {
        ("sources",): tuple(options.sources) or None,
        ("test",): tuple(options.test) if options.test else None,
        ("root",): options.root,
        ("rule", "table"): options.labels,
        ("rule", "pattern"): options.pattern,
        ("select", "num_images"): options.num_images,
        ("select", "order"): options.order,
        ("select", "find_regex"): options.find_regex,
        ("select", "subset"): _subset(options),
        ("select", "min_file_size"): options.min_file_size,
        ("select", "tar_only"): options.tar_only or None,
        ("video", "fps"): options.fps,
        ("video", "max_frames"): options.max_frames,
        ("model", "path"): HIGH_ACCURACY if options.high_accuracy else options.model,
        ("model", "cache"): options.model_cache,
        ("model", "input"): _model_input(options),
        ("bounding_box",): options.bounding_box,
        ("box_model",): options.box_model,
        ("embeddings",): options.embeddings,
        ("start",): options.start,
        ("until",): options.until,
        ("neighbours", "space"): options.space,
        ("neighbours", "threshold"): options.threshold,
        ("accept_empty",): options.accept_empty or None,
        ("delete_img",): options.delete_img or None,
        ("delete_tar",): options.delete_tar or None,
        ("min_offset",): options.min_offset,
        ("max_offset",): options.max_offset,
        ("shard_size",): options.shard_size,
        ("max_failed_share",): options.max_failed_share,
        **{("storage", name): value for name, value in storage_values(options).items()},
    }
    for path, value in given.items():
        if value is not None:
            _set(values, path, value)
    values.setdefault("root", "audit")
    values.setdefault("sources", ())
    return values


def _model_input(options: argparse.Namespace) -> dict[str, Any] | None:
    if not options.model_input:
        return None
    return parse_description(api.read_file(options.model_input, storage_values(options)), options.model_input)


def _subset(options: argparse.Namespace) -> tuple[str, ...] | None:
    if options.subset is None:
        return None
    lines = api.read_file(options.subset, storage_values(options)).decode("utf-8-sig", "surrogateescape").splitlines()
    return tuple(line for line in lines if line)


def _set(values: dict[str, Any], path: tuple[str, ...], value: Any) -> None:
    for name in path[:-1]:
        values = values.setdefault(name, {})
        if not isinstance(values, dict):  # no table of keys: the check of the whole configuration says so
            return
    values[path[-1]] = value
