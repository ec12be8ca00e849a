"""The vocabulary at rest: statuses, kinds and the schema of every table."""

from __future__ import annotations

from enum import Enum

import pyarrow as pa

from pipeline.columns import Column, Table, but_null


class Status(str, Enum):
    """What became of one image. A property of its bytes, or (TRANSIENT) of the attempt to read it."""

    OK = "ok"
    EMPTY = "empty"
    UNSUPPORTED = "unsupported"
    UNREADABLE = "unreadable"
    TRUNCATED = "truncated"
    TOO_SMALL = "too_small"
    TOO_LARGE = "too_large"
    MISSING = "missing"
    CHANGED = "changed"
    DENIED = "denied"
    TIMEOUT = "timeout"
    CRASHED = "crashed"


TRANSIENT = frozenset({Status.MISSING, Status.CHANGED, Status.DENIED, Status.TIMEOUT, Status.CRASHED})
"""Statuses that are never taken as settled: the next run on the root tries these images again."""


class Kind(str, Enum):
    """What a pair of images is, decided on their pixels."""

    SAME_BYTES = "same_bytes"
    SAME_PIXELS = "same_pixels"
    NEAR_IDENTICAL = "near_identical"
    EDITED = "edited"
    SAME_SCENE = "same_scene"
    LOOK_ALIKE = "look_alike"
    SAME_PARENT = "same_parent"


EXACT_DUPLICATES = frozenset({Kind.SAME_BYTES, Kind.SAME_PIXELS})
NEAR_DUPLICATES = frozenset({Kind.NEAR_IDENTICAL, Kind.EDITED})
GROUPING_KINDS = EXACT_DUPLICATES | NEAR_DUPLICATES
"""Kinds that join two images into one group; `same_scene` and `look_alike` never do."""

KIND_ORDER = (
    *(Kind.SAME_BYTES, Kind.SAME_PIXELS),
    *(Kind.NEAR_IDENTICAL, Kind.EDITED),
    *(Kind.SAME_PARENT, Kind.SAME_SCENE, Kind.LOOK_ALIKE),
)
"""Strongest first. Kernels carry a kind as its position here (int8)."""

_INT, _SHORT, _LONG, _REAL = pa.int32(), pa.int16(), pa.int64(), pa.float64()
_TEXT, _FLAG, _HASH = pa.string(), pa.bool_(), pa.binary(16)
_COSINE = ("cosine", "-1 to 1, 1 = identical")
_WORST_ONE = ("-", "0 to 1, 1 = worst")
_WORST_HUNDRED = ("percent", "0 to 100, 100 = worst")
_SHARE = ("share", "0 to 1, 1 = all")
_GREY = "grey levels"
_SHARP = ("squared grey levels", "larger = sharper")
_IMAGE_ID = Column("image_id", _LONG, "row number of the image in the catalog, its offset")
_GROUP_ID = Column("group_id", _LONG, "smallest image_id of the image's group; its own image_id when it is alone")
_PAIR_GROUP = Column(
    "group_id", _LONG, "group of both images; null where it is not one, as the kind joins none or it was split"
)
_REPRESENTATIVE = Column("representative_id", _LONG, "smallest image_id with the same bytes or pixels")
_SOURCE = Column("source", _SHORT, "number of the source that listed it, from 0")
_SUBJECT = (
    _IMAGE_ID,
    Column("uri", _TEXT, "name of the image, relative to its source"),
    Column("split", _TEXT, "split the image is in; null without one"),
    Column("label", _TEXT, "label the image was given; null without one"),
)
_MATCH = (
    Column("match_id", _LONG, "image_id of the other image"),
    Column("match_uri", _TEXT, "name of the other image"),
    Column("match_split", _TEXT, "split of the other image; null without one"),
    Column("match_label", _TEXT, "label of the other image; null without one"),
)
_KIND = Column("kind", _TEXT, "what the pair is, one of Kind")
_SIMILARITIES = (
    Column("similarity", _REAL, "similarity in the copy space", *_COSINE),
    Column("semantic_similarity", _REAL, "similarity of the embeddings", *_COSINE),
    Column("signature_similarity", _REAL, "similarity of the signatures", *_COSINE),
)
_ALIGNED = but_null(
    "where no pixels were compared",
    Column(
        "correlation", _REAL, "correlation of the aligned luminances, 0 where none are", "-", "-1 to 1, 1 = identical"
    ),
    Column("overlap", _REAL, "share of the smaller picture in the common area, 0 where there is none", *_SHARE),
    Column("is_mirrored", _FLAG, "the pair agrees better with one image mirrored"),
)
_IS_VERIFIED = Column("is_verified", _FLAG, "the kind was decided on hashes or pixels, not on similarity alone")
_EVIDENCE = (_KIND, *_SIMILARITIES, *_ALIGNED, _IS_VERIFIED)

DUPLICATES = Table(
    "duplicates",
    "a pair, smaller id first",
    (*_SUBJECT, *_MATCH, *_EVIDENCE, _PAIR_GROUP),
    ("image_id", "match_id"),
    "An exact group of n images is a star: n - 1 rows from its smallest image_id to each other member. "
    f"Kinds, strongest first: {', '.join(f'`{kind.value}`' for kind in KIND_ORDER)}.",
)

GROUPS = Table(
    "groups",
    "an image in a group of two or more",
    (
        _GROUP_ID,
        *_SUBJECT,
        Column("group_size", _LONG, "images in the group", "images"),
        Column("medoid_id", _LONG, "image_id of the member that is most similar to all others"),
        Column("is_keeper", _FLAG, "the one image of its group to keep"),
        Column("keeper_reason", _TEXT, "first rule by which the keeper wins over the next, or this image loses to it"),
        Column("similarity_to_medoid", _REAL, "similarity to the medoid in the copy space", *_COSINE),
        Column("group_min_similarity", _REAL, "smallest similarity_to_medoid of the group", *_COSINE),
        Column("is_split", _FLAG, "a piece of a larger component that chains of pairs held together"),
        Column(
            "split_similarity",
            _REAL,
            "similarity that the near-duplicates in it must have; null unless is_split",
            *_COSINE,
        ),
        Column("is_chained", _FLAG, "it joined through others: under the threshold to the medoid, and no edge to it"),
    ),
    ("group_id", "image_id"),
    "The keeper is chosen by split (test, val, any other, train, none: an evaluation split is not thinned in favour "
    "of training data), then more pixels, larger file, shorter uri, smaller image_id. `keeper_reason` is one of "
    "`split first`, `more pixels`, `larger file`, `shorter uri`, `smaller id` for a keeper, and one of `split later`, "
    "`fewer pixels`, `smaller file`, `longer uri`, `larger id` for the others. Images with the same bytes or pixels "
    "count once when the medoid is chosen. A component of over 1,000 different images, of which more than a tenth have "
    "a similarity to the medoid over .1 below the threshold, is split: near-duplicate pairs are cut, weakest first, "
    "until each piece is smaller or compact. Exact duplicates are never cut, and pairs between pieces stay in "
    "`duplicates`.",
)

LEAKS = Table(
    "leaks",
    "an image and its best match in one other split",
    (
        *_SUBJECT,
        *_MATCH,
        *but_null("where is_transitive", _KIND),
        *but_null("where is_transitive and not computed", *_SIMILARITIES),
        *_ALIGNED,
        _IS_VERIFIED,
        _PAIR_GROUP,
        Column("severity", pa.int8(), "how much it matters, from kind and label agreement", "-", "1 to 5, 5 = worst"),
        Column("is_label_conflict", _FLAG, "both images have a label and the labels differ"),
        Column("is_transitive", _FLAG, "the two images are in one group through others, without a duplicate edge"),
    ),
    ("image_id", "match_split"),
    "Both sides of a leak have their row. The best match is the strongest kind (a transitive one ranks after "
    "`edited`), then the largest similarity, then the smallest match_id. Severity: 5 `same_bytes` and `same_pixels`; "
    "4 `near_identical`; 3 `edited` and transitive; 2 `same_parent` and `same_scene`; 1 `look_alike`. A label conflict "
    "raises 3 and 4 by one. An image leaks when it has a row of severity 3 or more; the headline is the share of each "
    "split's `ok` images that do.",
)

OUTLIERS = Table(
    "outliers",
    "an `ok` image",
    (
        *_SUBJECT,
        Column("score", _REAL, "1 minus its mean similarity to images outside its group; null with none", *_WORST_ONE),
        Column("is_outlier", _FLAG, "the score is beyond the fence of the data set"),
        Column("percentile", _REAL, "share of images that score less; null without score", *_WORST_HUNDRED),
        Column("label_percentile", _REAL, "the same in its label; null without score or label", *_WORST_HUNDRED),
        Column("nearest_id", _LONG, "image_id of the nearest image outside its group; null with none"),
        Column("nearest_uri", _TEXT, "name of that image; null with none"),
        Column("nearest_similarity", _REAL, "similarity of the embeddings to that image; null with none", *_COSINE),
        Column("is_exact", _FLAG, "searched exhaustively; else the score is an upper bound"),
    ),
    ("image_id",),
    "The mean is over the 10 nearest groups' representatives, fewer in sets under 60 images. Duplicates never hide an "
    "outlier: its own group is left out, and images with the same bytes or pixels count once in percentiles and fence. "
    "An outlier's mean similarity m is beyond the fence on -ln(m): third quartile + 2.5 interquartile ranges, and its "
    "score at least 0.05 above the third quartile. No share is flagged by rule; nothing is in sets under 10 images. "
    "In a percentile, images that score the same (to 1/65,536) count half.",
)

LABELS = Table(
    "labels",
    "a labelled `ok` image",
    (
        *_SUBJECT,
        Column(
            "score", _REAL, "agreement of the vote with the label; null without votes", "-", "0 to 100, 100 = agrees"
        ),
        Column("is_label_issue", _FLAG, "the vote clearly speaks for another label"),
        Column("suggested_label", _TEXT, "label with the most votes; null where it is the given one or nobody voted"),
        Column("suggested_confidence", _REAL, "its share of the votes; null without suggestion", *_SHARE),
        Column("vote_count", _SHORT, "neighbours that voted", "images"),
    ),
    ("image_id",),
    "The 30 most similar labelled representatives outside the image's group vote, each once with its group's label "
    "shares and the weight exp((similarity - 1) / 0.1). The score is 50 * (1 + the given label's share - the best "
    "other label's share). It is an issue where the suggested label gets at least 0.8 of the mean share of its own "
    "images, and the given label under 0.1 of the mean share of its own: precision before recall; sort by score to see "
    "more.",
)

LABEL_CONFLICTS = Table(
    "label_conflicts",
    "a labelled image of whose group another file carries another label",
    (
        _GROUP_ID,
        _REPRESENTATIVE,
        *_SUBJECT,
        Column("is_certain", _FLAG, "an image with the same bytes or pixels has another label: one of them is wrong"),
        Column("conflict_id", _LONG, "smallest image_id with another label, of the same bytes or pixels if is_certain"),
        Column("conflict_uri", _TEXT, "name of that image"),
        Column("conflict_split", _TEXT, "split of that image; null without one"),
        Column("conflict_label", _TEXT, "label of that image"),
        Column("label_count", _INT, "different labels in the group", "labels"),
        Column("label_share", _REAL, "share of the group's labelled images that carry this label", *_SHARE),
        Column("majority_label", _TEXT, "the group's most frequent label; null on a tie"),
    ),
    ("group_id", "image_id"),
    "Groups whose images were all given one label, or none, have no row. Frames of one video and boxes of one image "
    "are no conflict of each other.",
)

_STATISTICS = (
    Column("mean", _REAL, "mean over all values of all channels", _GREY, "0 = black, 255 = white"),
    Column("stdv", _REAL, "mean of the channels' standard deviations", _GREY),
    Column("min", _SHORT, "smallest value of any channel", _GREY),
    Column("max", _SHORT, "largest value of any channel", _GREY),
    Column("unique", _SHORT, "different values, all channels pooled", "values", "1 to 256"),
    Column("contrast", _REAL, "(max - min) / (max + min), 0 for a black image", "-", "0 to 1, 1 = full range"),
    Column("blur", _REAL, "variance of the Laplacian of the luminance", *_SHARP),
)
_SHAPE = (
    Column("width", _INT, "width after orientation", "pixels"),
    Column("height", _INT, "height after orientation", "pixels"),
)

CHECKS = {
    "blurry": "fine detail is missing, relative to the contrast",
    "dark": "no part of the picture is bright",
    "bright": "no part of the picture is dark",
    "low_contrast": "the grey levels hardly differ",
    "odd_size": "many times more or fewer pixels than the other images",
    "odd_aspect": "much longer in one direction than in the other",
    "grey": "the channels hardly differ: no colour",
    "low_information": "few grey levels make up the picture",
}
"""Quality checks and what a picture shows that fails one."""


def _check_columns(check: str) -> tuple[Column, Column]:
    score = Column(f"{check}_score", _REAL, f"{CHECKS[check]}; 0.5 is the limit", *_WORST_ONE)
    return score, Column(f"is_{check}_issue", _FLAG, f"{check}_score is 0.5 or more")


QUALITY = Table(
    "quality",
    "an `ok` image",
    (
        *_SUBJECT,
        *_SHAPE,
        Column("size_bytes", _LONG, "size of the file or archive member; null for a box or a frame", "bytes"),
        *_STATISTICS,
        *(column for check in CHECKS for column in _check_columns(check)),
    ),
    ("image_id",),
    "Limits: `blurry` 8 for (blur + 1) / (stdv^2 + 1) * sqrt(width * height), the same at every resolution; `dark` 80 "
    "for mean + 2 stdv; `bright` 100 for 255 - mean + 2 stdv; `low_contrast` 16 for stdv; `grey` 2 for "
    "channel_difference, `low_information` 3 for entropy, both of feature_rows: less is an issue. `odd_aspect` 3 "
    "for long side / short side; `odd_size` 3 interquartile ranges (each at least 2/3) of log2 pixels outside the "
    "quartiles: more is one. A measure x with the limit t scores 1 / (1 + (x / t)^2), or 1 minus that where more is "
    "bad (for odd_aspect of the logarithms).",
)

VIDEOS = Table(
    "videos",
    "a video and another one that holds at least half of its frames, and of its pictures",
    (
        Column("video_id", _LONG, "smallest image_id of the video's frames"),
        Column("video", _TEXT, "name of the video, relative to its source"),
        Column("split", _TEXT, "split of the video; null without one, or where its frames have several"),
        Column("label", _TEXT, "label of the video; null without one, or where its frames have several"),
        Column("match_video_id", _LONG, "smallest image_id of the other video's frames"),
        Column("match_video", _TEXT, "name of the other video, relative to its source"),
        Column("match_split", _TEXT, "split of the other video; null without one, or where its frames have several"),
        Column("match_label", _TEXT, "label of the other video; null without one, or where its frames have several"),
        Column("frame_count", _LONG, "`ok` frames of the video", "frames"),
        Column("match_frame_count", _LONG, "`ok` frames of the other video", "frames"),
        Column("shared_frames", _LONG, "frames of the video in a group with a frame of the other", "frames"),
        Column("share", _REAL, "shared_frames of all frames of the video", *_SHARE),
        Column("match_shared_frames", _LONG, "frames of the other video in a group with one of this", "frames"),
        Column("match_share", _REAL, "match_shared_frames of all frames of the other video", *_SHARE),
        Column(
            "offset",
            _REAL,
            "time of a shared frame in the other video less that in this one, median over the shared groups",
            "seconds",
        ),
    ),
    ("video_id", "match_video_id"),
    "Frames are those that were taken (`video.fps`, `video.max_frames`): a copy is found where the same moments were. "
    "Of keyframes a re-encoded copy may have others; with `fps` it has the same ones if it begins at a multiple of "
    "1/fps. A frame that many videos have, such as a black one, makes no pair by itself. Of each video the 100 matches "
    "of the largest share are kept. A video inside a longer one has a row; the longer one need not have.",
)

_STATUS = Column("status", _TEXT, "what became of the image, one of Status")
_MESSAGE = Column("message", _TEXT, "what was seen and what was wanted; null when ok")
INVALID = Table("invalid", "an image that is not `ok`", (_IMAGE_ID, *_SUBJECT[1:], _STATUS, _MESSAGE), ("image_id",))

IMAGES = Table(
    "images",
    "an image of the snapshot, whatever its status",
    (
        *_SUBJECT,
        _SOURCE,
        Column("path", _TEXT, "where the file or object is: path or address to open; null where it is not UTF-8"),
        _STATUS,
        *but_null("unless ok", _REPRESENTATIVE, _GROUP_ID),
    ),
    ("image_id",),
    "Every count of images is a count over this table. In every table a `uri` is relative to the image's source, "
    "however many sources there are, so that it stays when one is added or all are moved; images of two sources may "
    "share one. Join by `image_id` for the `path`.",
)

FEATURE_ROWS = Table(
    "feature_rows",
    "an image of one shard, aligned with the shard's vectors",
    (
        _IMAGE_ID,
        _STATUS,
        _MESSAGE,
        Column("format", _TEXT, "format found in the bytes, such as jpeg; null where none was recognised"),
        *but_null("unless ok", *_SHAPE),
        Column("channels", _SHORT, "channels as stored, alpha counted; null unless ok", "channels"),
        Column("frames", _INT, "frames or pages in the file; null unless ok", "frames"),
        Column("size_bytes", _LONG, "bytes that were read; null where none were", "bytes"),
        Column("content_hash", _HASH, "hash of the whole file or archive member; null for a part of one or unread"),
        Column("pixel_hash", _HASH, "hash of shape, type and all channels; null for several frames or unless ok"),
        *but_null("unless ok", *_STATISTICS),
        Column("blur_blue", _REAL, "blur of the blue channel, for the fastdup export; null unless ok", *_SHARP),
        Column(
            "channel_difference",
            _REAL,
            "mean over the pixels of max(R, G, B) - min(R, G, B); null unless ok",
            _GREY,
            "0 = no colour",
        ),
        Column("entropy", _REAL, "entropy of the luminance histogram; null unless ok", "bits", "0 to 8, 8 = even"),
    ),
    ("image_id",),
    "A row that is not `ok` keeps its place; its vectors are zeros and never reach a kernel.",
)

EDGES = Table(
    "edges",
    "a verified pair of representatives, smaller id first",
    (_IMAGE_ID, _MATCH[0], *_EVIDENCE),
    ("image_id", "match_id"),
    "The pairs inside an exact group follow from representative_id.",
)

CATALOG_ROWS = Table(
    "catalog_rows",
    "an image that a source listed",
    (
        _IMAGE_ID,
        _SOURCE,
        Column("uri", _TEXT, "name relative to the source, escaped so that no two share one, see above"),
        Column("raw_key", pa.binary(), "the bytes of its file's name; null where the uri has the same"),
        Column("size_bytes", _LONG, "size in the listing, that of the member in an archive", "bytes"),
        Column("etag", _TEXT, "etag of its file in the listing of an object store; null on disk"),
        Column("mtime_ns", _LONG, "last change of its file on disk, since 1970; null on an object store", "ns"),
        *but_null(
            "for a file that is an image",
            Column("fragment", _TEXT, "what stands behind the # of its uri; empty for a file that cannot be opened"),
            Column("position", _LONG, "where it lies in its file: the order of the images in it"),
            Column("length", _LONG, "bytes that it takes there", "bytes"),
            Column("parent_size", _LONG, "size of its file", "bytes"),
            Column("parent_kind", _TEXT, "what its file is: tar, tar.gz, zip, video or image"),
            Column("problem", _TEXT, "status and cause where its file cannot be opened, else empty"),
            Column("label", _TEXT, "what a WebDataset sample gives its images as label, else empty"),
        ),
    ),
    ("image_id",),
    "In every `uri` a byte that is not UTF-8 is `%XX`, and a `%` that two hexadecimal digits follow is `%25`, so that "
    "`a%20b.jpg` is shown as `a%2520b.jpg`: putting the byte for each `%XX` gives the name. A `#` is `%23`: behind a "
    "`#` stands the name of an image inside a file, such as `a.tar#cat/1.jpg`, and behind another one its number where "
    "the file has several of that name, such as `a.tar#cat/1.jpg#2`. Tables of labels and patterns see the file's own "
    "name, or this uri where that is not UTF-8.",
)

_FINDINGS = (DUPLICATES, GROUPS, LEAKS, OUTLIERS, LABELS, LABEL_CONFLICTS, QUALITY, VIDEOS, INVALID, IMAGES)
TABLES: dict[str, Table] = {table.name: table for table in (*_FINDINGS, FEATURE_ROWS, EDGES, CATALOG_ROWS)}
"""Every stored table by name: what an audit found, then the working artifacts."""
