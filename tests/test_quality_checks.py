"""Each check on a picture that fails it and on real photos, at several sizes; scores, limits, odd sizes by hand."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import data

from pipeline.errors import UsageError
from pipeline.kernels.histogram import merge_histograms
from pipeline.kernels.quality import channel_difference, entropy, quality
from pipeline.kernels.quality_checks import (
    AREA_BINS,
    QualityLimits,
    QualityMeasures,
    area_histogram,
    quality_issues,
    quality_scores,
)
from pipeline.schemas import CHECKS, TABLES

LIMITS = QualityLimits()
PHOTOS = {name: getattr(data, name)() for name in ("astronaut", "chelsea", "coffee", "rocket")}


def measured(pictures: list[np.ndarray]) -> QualityMeasures:
    rows = []
    for picture in pictures:
        seen = quality(picture)
        grey = cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY)
        height, width = grey.shape
        rows.append((width, height, seen.mean, seen.stdv, seen.blur, channel_difference(picture), entropy(grey)))
    return QualityMeasures(*np.array(rows, np.float64).T)


def issues_of(picture: np.ndarray) -> set[str]:
    seen = measured([picture])
    found = quality_issues(quality_scores(seen, area_histogram(seen.width, seen.height), LIMITS))
    return {check for check, issue in found.items() if issue[0]}


def scaled(picture: np.ndarray, width: int) -> np.ndarray:
    size = (width, round(picture.shape[0] * width / picture.shape[1]))
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA)


@pytest.mark.parametrize("width", [150, 400])
@pytest.mark.parametrize("name", PHOTOS)
def test_a_good_photo_has_no_issue_at_any_size(name, width) -> None:
    assert issues_of(scaled(PHOTOS[name], width)) <= ({"dark"} if name == "rocket" else set())


@pytest.mark.parametrize("width", [150, 400])
@pytest.mark.parametrize("name", ["astronaut", "chelsea", "coffee"])
def test_a_photo_blurred_by_the_same_share_of_its_width_is_blurry_at_any_size(name, width) -> None:
    picture = scaled(PHOTOS[name], width)

    assert "blurry" in issues_of(cv2.GaussianBlur(picture, (0, 0), width / 50))


@pytest.mark.parametrize(
    ("change", "check"),
    [
        pytest.param(lambda p: (p * 0.15).astype(np.uint8), "dark", id="dark"),
        pytest.param(lambda p: (255 - p * 0.12).astype(np.uint8), "bright", id="bright"),
        pytest.param(lambda p: (110 + p * 0.1).astype(np.uint8), "low_contrast", id="low contrast"),
        pytest.param(lambda p: np.repeat(cv2.cvtColor(p, cv2.COLOR_RGB2GRAY)[..., None], 3, 2), "grey", id="grey"),
        pytest.param(lambda p: np.where(p > 128, 255, 0).astype(np.uint8), "low_information", id="two levels"),
        pytest.param(lambda p: p[:20], "odd_aspect", id="strip"),
    ],
)
def test_each_check_finds_its_fault(change, check) -> None:
    for name in ("astronaut", "chelsea", "coffee"):
        assert check in issues_of(change(scaled(PHOTOS[name], 300))), name


def test_a_picture_of_one_colour_is_not_called_blurry() -> None:
    black = issues_of(np.zeros((80, 80, 3), np.uint8))
    white = issues_of(np.full((80, 80, 3), 255, np.uint8))

    assert black == {"dark", "low_contrast", "grey", "low_information"}
    assert white == {"bright", "low_contrast", "grey", "low_information"}


@pytest.mark.parametrize(
    ("check", "mean", "stdv", "issue"),
    [
        pytest.param("dark", 60, 9, True, id="dark all over"),
        pytest.param("dark", 60, 11, False, id="a night with lights"),
        pytest.param("bright", 205, 24, True, id="bright all over"),
        pytest.param("bright", 205, 26, False, id="snow with rocks"),
        pytest.param("low_contrast", 120, 15.9, True, id="fog"),
        pytest.param("low_contrast", 120, 16.1, False, id="haze"),
    ],
)
def test_light_is_judged_with_its_spread(check, mean, stdv, issue) -> None:
    seen = QualityMeasures(*(np.array([float(x)]) for x in (100, 100, mean, stdv, 1000, 50, 7)))

    scores = quality_scores(seen, area_histogram(seen.width, seen.height), LIMITS)

    assert quality_issues(scores)[check].tolist() == [issue]


def test_the_same_detail_per_pixel_is_sharper_in_a_larger_picture() -> None:
    width = np.array([100.0, 160.0, 1600.0])
    level = np.full(3, 50.0)
    seen = QualityMeasures(width, width, level, level, np.full(3, 0.06 * 2501 - 1), level, level)

    scores = quality_scores(seen, area_histogram(width, width), LIMITS)["blurry"]

    assert scores.tolist() == np.round(1 / (1 + (0.06 * width / 8) ** 2), 6).tolist()
    assert (scores >= 0.5).tolist() == [True, False, False]


def sizes(*shapes: tuple[int, int]) -> QualityMeasures:
    width, height = np.array(shapes, np.float64).T
    level = np.full(len(shapes), 100.0)
    return QualityMeasures(width, height, level, level, level, level, level)


def odd_sizes(seen: QualityMeasures, areas: np.ndarray) -> list[bool]:
    return quality_issues(quality_scores(seen, areas, LIMITS))["odd_size"].tolist()


def test_in_a_set_of_one_size_twice_the_side_is_the_limit() -> None:
    areas = area_histogram(np.full(99, 150), np.full(99, 150))

    asked = sizes((150, 150), (150, 120), (290, 290), (310, 310), (80, 80), (70, 70))
    assert odd_sizes(asked, areas) == [False, False, False, True, False, True]


def test_in_a_varied_set_three_interquartile_ranges_are_the_limit() -> None:
    random = np.random.default_rng(0)
    side = np.exp2(random.uniform(8, 10, 4001))
    areas = area_histogram(side, side)

    scores = quality_scores(sizes((2**8, 2**8), (2**12, 2**12), (2**13, 2**13)), areas, LIMITS)["odd_size"]

    assert scores[0] == pytest.approx((0.5 / 3) ** 2 / (1 + (0.5 / 3) ** 2), abs=0.003)
    assert (scores >= 0.5).tolist() == [False, False, True]


def test_the_area_histogram_adds_up() -> None:
    width, height = np.array([10, 640, 40_000]), np.array([12, 480, 30_000])
    whole = area_histogram(width, height)

    assert (
        merge_histograms(
            [area_histogram(width[:1], height[:1]), area_histogram(width[1:], height[1:])], AREA_BINS
        ).tolist()
        == whole.tolist()
    )
    assert whole.sum() == 3


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            *[st.integers(1, 5000)] * 2, *[st.floats(0, 255)] * 2, st.floats(0, 1e5), st.floats(0, 255), st.floats(0, 8)
        ),
        max_size=8,
    )
)
def test_scores_are_between_0_and_1_for_every_check_and_do_not_depend_on_company(rows) -> None:
    columns = np.array(rows, np.float64).reshape(-1, 7).T
    seen = QualityMeasures(*columns)
    areas = area_histogram(seen.width, seen.height)

    scores = quality_scores(seen, areas, LIMITS)

    assert list(scores) == list(CHECKS)
    for check, score in scores.items():
        assert ((score >= 0) & (score <= 1)).all(), check
        for i in range(len(rows)):
            alone = quality_scores(QualityMeasures(*columns[:, i : i + 1]), areas, LIMITS)[check]
            assert alone.tolist() == [score[i]]


def test_the_limits_in_the_documents_are_the_defaults() -> None:
    notes = TABLES["quality"].notes

    for check in CHECKS:
        assert f"`{check}` {getattr(LIMITS, check):g}" in notes, check


@pytest.mark.parametrize("wrong", [{"blurry": 0.0}, {"dark": -1.0}, {"odd_aspect": 1.0}, {"grey": float("nan")}])
def test_a_limit_out_of_range_is_refused(wrong) -> None:
    with pytest.raises(UsageError, match=next(iter(wrong))):
        QualityLimits(**wrong)
