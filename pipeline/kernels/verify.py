"""What a pair of images is, decided on the pixels of both.

Each image is laid on the other (same frame in eight orientations first, then by features), and both are compared in
windows of a band of middle frequencies, where blur, re-encoding and recolouring change little and another frame of the
scene changes much. Two photos of a burst can agree as well as a photo and its copy; then the geometry decides: an edit
keeps one frame inside the other without shear, a hand-held camera does not. Luminance only, no model, no similarity.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt

from pipeline.errors import UsageError
from pipeline.kernels import agreement, align
from pipeline.kernels.agreement import Agreement, Luminance
from pipeline.kernels.align import Array, Geometry, Mask, Transform
from pipeline.kernels.verify_params import VerifyParams
from pipeline.schemas import Kind

THUMB = 32
STRIDE = 2
"""Every so many pixels are compared: the band holds nothing finer than 4 of them, and windows keep 64 samples."""
TURNED = tuple((turns, mirrored) for mirrored in (False, True) for turns in range(4))
UNMOVED = np.eye(2, 3)
IN_PLACE = Geometry(contained=1.0, common=1.0, scale=1.0, rotation=0.0, centre=0.0, skew=0.0, shear=0.0)


def _oriented(array: npt.NDArray[Any], turns: int, mirrored: bool) -> npt.NDArray[Any]:
    return np.ascontiguousarray(np.rot90(array[:, ::-1] if mirrored else array, turns))


TURNED_PLACES = np.stack([_oriented(np.arange(THUMB * THUMB).reshape(THUMB, THUMB), *view).ravel() for view in TURNED])


class Evidence(NamedTuple):
    """The kind of a pair and what it rests on.

    `correlation`: of the luminance over the common area after alignment, -1 to 1. `overlap`: share of the image that
    shows less which the other covers, 0 to 1. `mirrored`: one is a mirror image of the other. `scale`: size of the
    second image's picture relative to the first's, when both frames have equally long sides. `rotation`: degrees,
    -180 to 180, counter-clockwise from first to second. `inliers`: matched corners that agree with the alignment; 0
    where the frames agreed without them.
    """

    kind: Kind
    correlation: float
    overlap: float
    mirrored: bool
    scale: float
    rotation: float
    inliers: int


@dataclass
class PreparedImage:
    """One image, ready for any number of pairs: 0.2 MB at 160 pixels.

    `luminance` and `clear` (see `unclipped`) are uint8 (H, W), `band` is float32 (H, W).
    """

    luminance: Luminance
    band: Array
    clear: Luminance
    thumb: Array
    _features: align.Features | None = None

    def features(self) -> align.Features:
        """Corners and patches, computed when first asked for."""
        if self._features is None:
            self._features = align.features(self.luminance)
        return self._features

    def view(self, turns: int, mirrored: bool) -> PreparedImage:
        """The image mirrored (left to right) and then turned by quarter turns counter-clockwise."""
        if not turns and not mirrored:
            return self
        luminance, band, clear, thumb = (
            _oriented(array, turns, mirrored) for array in (self.luminance, self.band, self.clear, self.thumb)
        )
        return PreparedImage(luminance, band, clear, thumb)


class _Laid(NamedTuple):
    """One alignment of a pair, judged: `second`, as it was turned or mirrored, laid on `first` by `transform`."""

    agreement: Agreement
    geometry: Geometry
    turns: int
    mirrored: bool
    inliers: int
    first: PreparedImage
    second: PreparedImage
    transform: Transform

    def pixels(self) -> tuple[Luminance, Luminance, Mask]:
        """The luminance of both, one on the other, and where the second has any."""
        shape = self.first.luminance.shape
        moved = _moved(self.first, self.second, self.transform)
        return self.first.luminance, moved, align.inside(self.second.luminance.shape, self.transform, shape)


def prepare(luminance: Luminance, params: VerifyParams) -> PreparedImage:
    """Make `luminance` (uint8, (H, W), any size from 1 x 1) ready for `compare`; UsageError for another shape or type.

    It is brought to a long side of `params.side` and at least 32 pixels on the other, so that copies of different size
    meet at one scale. Pass it already shrunk (by area, to no less than `side`) where memory matters.
    """
    if luminance.ndim != 2 or luminance.dtype != np.uint8 or not luminance.size:
        raise UsageError(
            f"verify wants luminance as uint8 (H, W), got {luminance.dtype} {luminance.shape}. Convert the image first."
        )
    height, width = luminance.shape
    ratio = params.side / max(height, width)
    size = (max(32, round(width * ratio)), max(32, round(height * ratio)))
    raster = luminance
    if size != (width, height):
        how = cv2.INTER_AREA if ratio < 1 else cv2.INTER_LINEAR
        raster = np.asarray(cv2.resize(luminance, size, interpolation=how), dtype=np.uint8)
    thumb = np.asarray(cv2.resize(raster, (THUMB, THUMB), interpolation=cv2.INTER_AREA), dtype=np.float32)
    thumb = thumb - thumb.mean()
    band = agreement.band(raster.astype(np.float32), params.side / 160)
    return PreparedImage(raster, band, agreement.unclipped(raster), thumb / max(float(np.linalg.norm(thumb)), 1e-6))


def _is_scaled(transform: Transform) -> bool:
    """True from 3% on: then two bands hold frequencies that differ."""
    (a, b, _), (c, d, _) = transform.tolist()
    return bool(abs(abs(a * d - b * c) ** 0.5 - 1) > 0.03)


def _moved(a: PreparedImage, b: PreparedImage, transform: Transform) -> Luminance:
    """The luminance of `b` laid on the raster of `a`."""
    if a.luminance.shape == b.luminance.shape and np.array_equal(transform, UNMOVED):
        return b.luminance
    return align.warp(b.luminance, transform, a.luminance.shape)


def _lay(a: PreparedImage, b: PreparedImage, transform: Transform, params: VerifyParams) -> Agreement:
    """The agreement of `b` laid on `a`, at every second pixel."""
    at, unit = align.strided(transform, STRIDE), params.side / 160
    own = a.band[::STRIDE, ::STRIDE]
    small = own.shape
    if a.luminance.shape == b.luminance.shape and np.array_equal(transform, UNMOVED):
        band = b.band[::STRIDE, ::STRIDE]
    elif _is_scaled(transform):
        band = agreement.band(_moved(a, b, transform).astype(np.float32), unit)[::STRIDE, ::STRIDE]
    else:
        band = align.warp(b.band, at, small)
    core = agreement.judged(align.inside(b.luminance.shape, at, small), round(4 * unit / STRIDE))
    clear = a.clear[::STRIDE, ::STRIDE].view(np.bool_) & align.hits(b.clear, at, small)
    found = agreement.agreement(own, band, core & clear)
    if found.windows < params.least_windows:
        found = agreement.agreement(own, band, core)
    elif params.overlaid_agreement <= found.half < params.moved:
        # clipping hides white captions, which tell most clearly on which side the detail was added
        found = found._replace(sides=agreement.agreement(own, band, core).sides)
    return found


def _is_edit_geometry(found: Geometry, judged: Agreement, params: VerifyParams) -> bool:
    """True where an edit can have made the transform: a contained frame, stretched along its axes or turned.

    Where the pictures agree cleanly the transform is known to a tenth of a pixel, and a zoom by hand shows.
    """
    is_contained = found.contained >= params.contained
    is_clean = judged.well >= 0.98 and judged.residual < 0.2
    if found.skew <= (params.clean_skew if is_clean else params.skew) and is_contained:
        return True
    # hands roll a camera by a few degrees at most, so that a larger turn needs less exactness
    if abs(found.rotation) >= 2 * params.turn:
        return found.shear <= 6 * params.skew and (is_contained or found.centre <= 2.0)
    return abs(found.rotation) >= params.turn and found.shear <= 1.5 * params.skew and is_contained


def _is_same_photo(laid: _Laid, params: VerifyParams) -> bool:
    found = laid.agreement
    if not _is_edit_geometry(laid.geometry, found, params):
        return False
    if found.windows < params.least_windows:
        apart = agreement.difference(*laid.pixels())
        return laid.inliers == 0 and apart <= params.flat_difference
    if laid.mirrored:  # no burst holds the mirror image of a frame, but things on a table are symmetric
        return found.well >= params.mirrored_agreement and found.residual <= params.mirrored_residual
    is_pinned = laid.inliers > 0 and (abs(laid.geometry.scale - 1) > 0.05 or _is_in_place(laid))
    return _agrees(found, is_pinned, params)


def _agrees(found: Agreement, is_pinned: bool, params: VerifyParams) -> bool:
    """True where the windows agree all over, or all but those under an overlay.

    Pinned pairs may leave more: corners put one frame exactly on or well inside the other, where the frames of a burst
    lie most of a pixel apart (0.8 to 1.2 of 160 on Intel scenes) and a zoom by hand shows in the skew.
    """
    is_overlaid = found.well < params.agreement
    limit = params.overlaid_residual if is_overlaid else params.residual
    if found.residual > (max(limit, params.pinned_residual) if is_pinned else limit):
        return False
    is_exact = found.residual <= params.exact_residual
    has_moved = found.sides < (params.one_sided if is_exact else 2 * params.one_sided)
    if found.half < params.moved and has_moved and not (is_exact and found.half >= 0.9):
        return False
    return not is_overlaid or found.half >= params.overlaid_agreement


def _same_frames(a: PreparedImage, b: PreparedImage, params: VerifyParams) -> list[_Laid]:
    """The pair laid frame on frame, in the two orientations whose thumbnails agree best; the first same photo ends."""
    alike = b.thumb.ravel()[TURNED_PLACES] @ a.thumb.ravel()
    flat = not a.thumb.any() or not b.thumb.any()
    laid: list[_Laid] = []
    order = np.argsort(-alike, kind="stable")[:2]
    for place in order:
        if alike[place] < max(0.5, alike[order[0]] - 0.1) and not (flat and place == 0):
            break
        view_turns, view_mirrored = TURNED[place]
        view = b.view(view_turns, view_mirrored)
        transform = align.frame_change(a.luminance.shape, view.luminance.shape)
        found = _lay(a, view, transform, params)
        there = _Laid(found, IN_PLACE, view_turns, view_mirrored, 0, a, view, transform)
        laid.append(_settled(there, params) if place == 0 and _is_same_photo(there, params) else there)
        if _is_same_photo(laid[-1], params):
            return laid[-1:]
    return laid


def _settled(laid: _Laid, params: VerifyParams) -> _Laid:
    """`laid`, frame on frame, moved to where its pictures lie if that explains most of what was left: a burst."""
    if laid.agreement.residual <= params.exact_residual:
        return laid
    unit = params.side / 160
    height, width = laid.first.luminance.shape
    transform = align.refine(laid.first.band, laid.second.band, laid.transform)
    corners = np.array([[0.0, 0.0, 1.0], [width, 0.0, 1.0], [0.0, height, 1.0], [width, height, 1.0]])
    moved = float(np.hypot(*((transform - laid.transform) @ corners.T)).max())
    found = _lay(laid.first, laid.second, transform, params)
    if moved < params.drift * unit or found.residual > params.settled * laid.agreement.residual:
        return laid
    return laid._replace(
        agreement=found, geometry=_geometry(laid.first, laid.second, transform, unit), transform=transform
    )


def _geometry(a: PreparedImage, b: PreparedImage, transform: Transform, unit: float) -> Geometry:
    """What `transform` does to the frame of `b`, lengths in units."""
    found = align.geometry(transform, a.luminance.shape, b.luminance.shape)
    return found._replace(centre=found.centre / unit, skew=found.skew / unit, shear=found.shear / unit)


def _refined(a: PreparedImage, b: PreparedImage, start: Transform, unit: float) -> Transform:
    """`start` refined on the bands; where the pictures differ in scale once more, on bands of equal frequencies."""
    transform = align.refine(a.band, b.band, start)
    if not _is_scaled(transform):
        return transform
    moved = align.warp(b.luminance, transform, a.luminance.shape)
    seen = agreement.judged(align.inside(b.luminance.shape, transform, a.luminance.shape), round(4 * unit))
    rest = align.refine(a.band, agreement.band(moved.astype(np.float32), unit), np.eye(2, 3), seen)
    return np.asarray(transform @ np.vstack([rest, [0.0, 0.0, 1.0]]), dtype=np.float64)


def _by_features(a: PreparedImage, b: PreparedImage, params: VerifyParams) -> _Laid | None:
    """The pair laid by matching corners, plain or mirrored, whichever has more of them; None without enough."""
    unit = params.side / 160
    first, second = a.features(), b.features()
    mirrored, transform, inliers = False, UNMOVED, 0
    for is_mirrored, seen in enumerate((second, align.mirrored(second, b.luminance.shape[1]))):
        source, target = align.match(first, seen, params.patch_similarity, 80)
        least = max(params.least_inliers, inliers + 1)
        found, votes = align.vote(source, target, params.tolerance * unit, least)
        if votes > inliers:
            mirrored, transform, inliers = bool(is_mirrored), found, votes
    if inliers < params.least_inliers:
        return None
    view = b.view(0, mirrored)
    rough = align.geometry(transform, a.luminance.shape, view.luminance.shape)
    if rough.contained > 0.85 and min(rough.skew, rough.shear) < 12 * unit:  # else no refinement makes it an edit
        transform = _refined(a, view, transform, unit)
    judged = _lay(a, view, transform, params)
    return _Laid(judged, _geometry(a, view, transform, unit), 0, mirrored, inliers, a, view, transform)


def _is_in_place(laid: _Laid) -> bool:
    """True where the frames lie on each other within 0.6 pixels, unturned."""
    at = laid.geometry
    is_still = max(at.centre, at.skew, at.shear) < 0.6 and abs(at.scale - 1) < 0.005
    return is_still and not laid.turns and not laid.mirrored


def _kind(laid: _Laid, params: VerifyParams) -> Kind:
    if _is_same_photo(laid, params):
        overlay = agreement.covered_share(*laid.pixels()) if _is_in_place(laid) else 1.0
        limit = params.overlay if laid.agreement.half >= params.moved else params.overlay / 8
        return Kind.NEAR_IDENTICAL if overlay < limit else Kind.EDITED
    scene = laid.agreement.half >= 0.5 and laid.agreement.windows >= params.least_windows
    return Kind.SAME_SCENE if scene or laid.inliers >= params.scene_inliers else Kind.LOOK_ALIKE


def _ordered(a: PreparedImage, b: PreparedImage) -> bool:
    first, second = (a.luminance.shape, a.luminance.tobytes()), (b.luminance.shape, b.luminance.tobytes())
    return first <= second


def compare(a: PreparedImage, b: PreparedImage, params: VerifyParams) -> Evidence:
    """Decide what a pair is. The kind is the same for (a, b) and (b, a); nothing is drawn at random.

    Only `near_identical`, `edited`, `same_scene` and `look_alike` are returned: equal bytes or pixels are found by hash
    before. Both images must have been prepared with the same `params`.
    """
    swapped = not _ordered(a, b)
    if swapped:
        a, b = b, a
    tried = _same_frames(a, b, params)
    if not (tried and _is_same_photo(tried[-1], params)):
        laid = _by_features(a, b, params)
        tried = tried if laid is None else [*tried, laid]
    if not tried:
        return Evidence(Kind.LOOK_ALIKE, 0.0, 0.0, False, 1.0, 0.0, 0)
    same = [laid for laid in tried if _is_same_photo(laid, params)]
    best = (
        same[0] if same else max(tried, key=lambda laid: (laid.agreement.half * laid.geometry.contained, laid.inliers))
    )
    scale, rotation = best.geometry.scale, best.geometry.rotation + 90.0 * best.turns
    if swapped:
        scale, rotation = 1 / scale, -rotation if not best.mirrored else rotation
    return Evidence(
        kind=_kind(best, params),
        correlation=round(agreement.correlation(*best.pixels()), 6),
        overlap=best.geometry.contained,
        mirrored=best.mirrored,
        scale=scale,
        rotation=(rotation + 180.0) % 360.0 - 180.0,
        inliers=best.inliers,
    )


def may_skip(similarity: float, signature_similarity: float, params: VerifyParams) -> bool:
    """True where both similarities (cosines) are so high that the pair is `near_identical` without a look at it."""
    return similarity >= params.skip_similarity and signature_similarity >= params.skip_signature


def kind_without_pixels(similarity: float, signature_similarity: float | None, params: VerifyParams) -> Kind:
    """The kind by similarity alone, for a user's own embeddings or pixels that cannot be read.

    Without a signature (None) the embedding decides alone. Never `edited`: that takes pixels.
    """
    signature = 1.0 if signature_similarity is None else signature_similarity
    near = is_near_without_pixels(np.array([similarity]), np.array([signature]), params)
    return Kind.NEAR_IDENTICAL if near[0] else Kind.LOOK_ALIKE


def is_near_without_pixels(
    similarity: npt.NDArray[np.float64], signature_similarity: npt.NDArray[np.float64], params: VerifyParams
) -> npt.NDArray[np.bool_]:
    """Which of n pairs are `near_identical` by similarity alone, bool (n,); the others are `look_alike`.

    Both cosines decide where the pixels should have been compared, and will be; the similarity alone under
    `pixels=False`, where that is the verdict. NaN is no similarity.
    """
    if not params.pixels:
        return np.asarray(similarity >= params.near_similarity, bool)
    skipped = (similarity >= params.skip_similarity) & (signature_similarity >= params.skip_signature)
    return np.asarray(skipped, bool)
