"""Splits and labels from folders and patterns: pure functions of one path."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import UsageError
from pipeline.sources import labels
from pipeline.sources.labels import RuleParams, Told, assign, describe, matched
from pipeline.sources.splits import SPLIT_NAMES, canonical_split, split_of_name, split_of_place

FOLDERS = RuleParams()


@pytest.mark.parametrize(
    ("path", "split", "label"),
    [
        ("train/cat/1.jpg", "train", "cat"),
        ("Training/cat/1.jpg", "train", "cat"),
        ("TRAIN_SET/cat/1.jpg", "train", "cat"),
        ("valid_set/cat/1.jpg", "val", "cat"),
        ("validation-set/cat/1.jpg", "val", "cat"),
        ("Val/cat/1.jpg", "val", "cat"),
        ("dev/cat/1.jpg", "dev", "cat"),
        ("testset/cat/1.jpg", "test", "cat"),
        ("testing set/cat/1.jpg", "test", "cat"),
        ("eval/cat/1.jpg", "eval", "cat"),
        ("Evaluation/cat/1.jpg", "eval", "cat"),
        ("holdout/cat/1.jpg", "holdout", "cat"),
        ("train/cat/siamese/1.jpg", "train", "cat"),  # the first folder below the split, as in ImageFolder
        ("data/images/train/cat/1.jpg", "train", "cat"),  # whatever lies above the split is no label
        ("train/test/1.jpg", "train", "test"),  # the first from the top counts, the next is a label
        ("test_set/1.jpg", "test", None),  # directly in its split
        ("cat/train/1.jpg", "train", "cat"),  # the class above the split
        ("pets/cat/Test/1.jpg", "test", "cat"),
        ("cat/train/siamese/1.jpg", "train", "siamese"),  # what lies below comes first
        ("images/train/1.jpg", "train", None),  # a folder that holds the images is no class
        ("JPEGImages/val/1.jpg", "val", None),
        ("cat/1.jpg", None, "cat"),
        ("cat/siamese/1.jpg", None, "cat"),
        ("1.jpg", None, None),  # directly in the source
        ("cat/test.jpg", None, "cat"),  # a file's own name is no folder
        ("trains/1.jpg", None, "trains"),
        ("train2017/cat/1.jpg", "train", "cat"),  # as COCO names its folders
        ("images/val2017/1.jpg", "val", None),
        ("test2015/1.jpg", "test", None),
        ("coco.zip/train2017/1.jpg", "train", None),
        ("train_2017/1.jpg", None, "train_2017"),
        ("train2017b/1.jpg", None, "train2017b"),
        ("trainer/1.jpg", None, "trainer"),
        ("test_tube/1.jpg", None, "test_tube"),
        ("2017/1.jpg", None, "2017"),
        ("a.zip/../../evil.jpg", None, "a"),  # `..` and `.` are no folders
        ("../cat/./1.jpg", None, "cat"),
        ("./1.jpg", None, None),
        ("trainset_2/1.jpg", None, "trainset_2"),
        ("set/1.jpg", None, "set"),
        ("a//train//cat/1.jpg", "train", "cat"),  # an empty name in a key of an object store
    ],
)
def test_folders(path: str, split: str | None, label: str | None) -> None:
    """Each path gets the split and label that its folders say."""
    assert assign([path], FOLDERS) == ([split], [label])


@pytest.mark.parametrize(
    ("place", "split"),
    [
        ("/data/photos/train", "train"),
        ("/val_set", "val"),
        ("/data/train/photos", None),  # its last folder alone
        ("/", None),
        ("s3://bucket/a/Test", "test"),
        ("s3://test", None),  # a bucket is no folder
        ("minio://lab/test", None),
        ("minio://train/bucket/eval", "eval"),
    ],
)
def test_split_of_a_source(place: str, split: str | None) -> None:
    """The last folder of a source names the split of the paths whose own folders name none; a label it never is."""
    assert split_of_place(place) == split
    listed = ["cat/1.jpg", "dev/cat/1.jpg", "1.jpg"]
    assert assign(listed, FOLDERS, None, Told([split] * 3)) == ([split, "dev", split], ["cat", "cat", None])
    assert assign(listed, RuleParams(default_split="fold1"), None, Told([split] * 3))[0] == [
        split or "fold1",
        "dev",
        split or "fold1",
    ]
    assert assign(listed, RuleParams(split="fold1"), None, Told([split] * 3))[0] == ["fold1"] * 3
    assert assign(listed, RuleParams(pattern="(?P<split>d.v)"), None, Told([split] * 3))[0] == [None, "dev", None]
    assert assign(listed, RuleParams(pattern="(?P<label>d.v)"), None, Told([split] * 3))[0] == [split, "dev", split]
    assert (f"else {split} as the source's own folder says" in describe(FOLDERS, split)) == (split is not None)


@given(st.sampled_from(sorted(SPLIT_NAMES)), st.sampled_from(["", "set", "_set", "-set", " set"]), st.data())
@settings(max_examples=60, deadline=None)
def test_any_case_and_suffix(name: str, suffix: str, data: st.DataObject) -> None:
    """A split name is known in any mix of cases, with or without its suffix."""
    flips = data.draw(st.lists(st.booleans(), min_size=len(name + suffix), max_size=len(name + suffix)))
    written = "".join(c.upper() if up else c for c, up in zip(name + suffix, flips, strict=True))

    assert split_of_name(written) == SPLIT_NAMES[name]


paths = st.lists(
    st.lists(st.sampled_from(["train", "val_set", "Test", "cat", "dog", "é", "a b", ""]), max_size=4).map(
        lambda folders: "/".join([*folders, "1.jpg"])
    ),
    max_size=12,
)
rules = st.sampled_from(
    [
        FOLDERS,
        RuleParams(split="test"),
        RuleParams(default_split="train"),
        RuleParams(pattern=r"(?P<label>cat|dog)"),
        RuleParams(pattern=r"^(?P<split>[^/]*)/(?P<label>[^/]*)/"),
    ]
)


@given(paths, rules, st.integers(0, 12))
@settings(max_examples=80, deadline=None)
def test_cut_anywhere(paths: list[str], rule: RuleParams, cut: int) -> None:
    """A listing cut into chunks gets what it gets whole."""
    splits, labels = assign(paths, rule)
    first, second = assign(paths[:cut], rule), assign(paths[cut:], rule)

    assert (first[0] + second[0], first[1] + second[1]) == (splits, labels)
    assert len(splits) == len(labels) == len(paths)
    assert "" not in splits
    assert "" not in labels


def test_pattern_gives_both() -> None:
    """Both groups come from the pattern; a path that it does not match has neither, and is counted."""
    rule = RuleParams(pattern=r"^(?P<split>[^_]+)_(?P<label>[a-z]+)\d*\.")
    listed = ["training_cat01.jpg", "fold3_dog.png", "test/other.jpg"]

    assert assign(listed, rule) == (["train", "fold3", None], ["cat", "dog", None])
    assert matched(listed, rule).tolist() == [0, 0, -1]
    assert matched(listed, RuleParams()).tolist() == [0, 0, 0]


def test_pattern_gives_one() -> None:
    """What a pattern does not name comes from the folders."""
    only_label = RuleParams(pattern=r"(?P<label>n\d{8})_")
    only_split = RuleParams(pattern=r"part-(?P<split>[ab])")

    assert assign(["val/n01440764_3.JPEG", "val/x/3.jpg"], only_label) == (["val", "val"], ["n01440764", None])
    assert assign(["part-a/cat/1.jpg", "train/cat/2.jpg"], only_split) == (["a", None], ["part-a", "cat"])


def test_pattern_group_that_takes_no_part() -> None:
    """An optional or empty group is no split and no label."""
    rule = RuleParams(pattern=r"^(?:(?P<split>train|test)/)?(?P<label>[a-z]*)\d")

    assert assign(["train/cat1.jpg", "cat1.jpg", "test/1.jpg"], rule) == (
        ["train", None, "test"],
        ["cat", "cat", None],
    )


def test_split_of_a_whole_source() -> None:
    """A given split holds for every path; a default one where no folder names another. Labels stay."""
    listed = ["cat/1.jpg", "val/cat/2.jpg"]

    assert assign(listed, RuleParams(default_split="train")) == (["train", "val"], ["cat", "cat"])
    assert assign(listed, RuleParams(split="test")) == (["test", "test"], ["cat", "cat"])
    assert assign(listed, RuleParams(split="test", default_split="train"))[0] == ["test", "test"]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"pattern": "(?P<label>"}, "not a regular expression"),
        ({"pattern": "train|test"}, "names the groups: none"),
        ({"pattern": "(?P<lable>x)(?P<split>y)"}, "names the groups: lable, split"),
        ({"pattern": "(?P<label>x)", "table": "a.csv"}, "only one can rule"),
        ({"table": ""}, "table of the split and label rule is empty"),
        ({"split": ""}, "split of the split and label rule is empty"),
    ],
)
def test_wrong_rule(fields: dict[str, str], said: str) -> None:
    """A rule is checked when it is built."""
    with pytest.raises(UsageError, match=said):
        RuleParams(**fields)


def test_every_problem_in_one_message() -> None:
    """All problems of a rule come together."""
    with pytest.raises(UsageError, match=r"(?s)not a regular expression.*only one can rule.*split .* is empty"):
        RuleParams(pattern="(", table="a.csv", split="")


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        (FOLDERS, "splits and labels from folder names"),
        (RuleParams(pattern="(?P<split>x)"), "split from the pattern (?P<split>x); label = the folder"),
        (RuleParams(pattern="(?P<label>x)"), "label from the pattern (?P<label>x); split = the first folder"),
        (RuleParams(pattern="(?P<label>x)(?P<split>y)"), "split and label from the pattern"),
        (RuleParams(table="s3://b/labels.csv"), "the table s3://b/labels.csv"),
        (RuleParams(split="test"), "every image of this source is in split test"),
        (RuleParams(default_split="train"), "split train where none is named"),
    ],
)
def test_describe(rule: RuleParams, said: str) -> None:
    """The line that a run prints names the rule."""
    line = describe(rule)

    assert said in line
    assert "\n" not in line


def test_unknown_split_is_kept() -> None:
    """A pattern or table may name a split of its own."""
    assert canonical_split("Fold_3") == "Fold_3"
    assert canonical_split("val2") == "val2"  # a table that tells it from val1 means it
    assert canonical_split("Training") == "train"


def test_cost_per_path_does_not_grow() -> None:
    """A million paths of a sorted listing take the rule once per folder, not once per path."""
    labels._folder_rule.cache_clear()
    assign([f"train/class{i // 500:04}/{i}.jpg" for i in range(50_000)], FOLDERS)

    assert labels._folder_rule.cache_info().misses == 100


@pytest.mark.parametrize(
    ("path", "split", "label"),
    [
        ("train-00012.tar/cat/1.jpg", "train", "cat"),
        ("shards/imagenet_val_3.tgz/cat/1.jpg", "val", "cat"),
        ("ILSVRC2012_img_train.tar/n01440764/1.jpg", "train", "n01440764"),
        ("train.zip/train/cat/1.jpg", "train", "cat"),
        ("train.zip/images/1.jpg", "train", "images"),
        ("train.zip/1.jpg", "train", None),
        ("test/cat.tar/1.jpg", "test", "cat"),
        ("n01440764.tar/1.jpg", None, "n01440764"),
        ("photos.tar/cat/1.jpg", None, "cat"),
        ("photos.tar/photos/cat/1.jpg", None, "cat"),
        ("photos.tar/photos/1.jpg", None, "photos"),
        ("set.tar/val/dog/1.jpg", "val", "dog"),
        ("shard-00012.tar/1.jpg", None, None),
        ("00012.tar/1.jpg", None, None),
        ("images.zip/1.jpg", None, None),
        ("cat/shard_7.tar/1.jpg", None, "cat"),
        ("cat.zip", None, None),
    ],
)
def test_an_archive_in_a_path_says_what_its_name_says(path: str, split: str | None, label: str | None) -> None:
    assert assign([path], RuleParams()) == ([split], [label])
