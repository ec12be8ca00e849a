"""The limits of the decision what a pair of images is."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.errors import UsageError


@dataclass(frozen=True)
class VerifyParams:
    """Limits of the decision. Shares are of textured windows, lengths in pixels of a raster of `side` pixels.

    The defaults were set on 7,300 pairs of Intel scenes, looked at by eye, and on planted edits, 98% of which reach
    `well` .95 (rotated .87) and leave a `residual` of at most .30; frames of a burst leave .33 to .60 unless they are
    shifted, which the geometry shows. `side`: long side that both images are brought to. `agreement`,
    `overlaid_agreement`, `mirrored_agreement`: least share of windows. `residual`, `overlaid_residual`,
    `pinned_residual`, `mirrored_residual`, `exact_residual`: see `Agreement.residual`; 98% of mirrored copies leave .43
    at most, two shirts or two road signs .45 to .81. `moved`: share of windows below which some disagree
    and one image must hold the more detail there (`one_sided`). `contained`, `skew`, `clean_skew`, `turn` (degrees):
    what an edit may do to a frame. `flat_difference`: grey levels between two copies without texture. `overlay`: share
    of pixels from which a copy in place is `edited`. `drift` and `settled`: two frames that agree better when one is
    moved by so many pixels, leaving at most that share of the residual, are judged where they lie then. The next frame
    of a still camera moves by .8 to 1.1 and leaves .22 to .44; of 2,100 planted edits in place those that move leave
    .77 or more. Such frames reach a similarity of .966 and a signature of 1.0, so that pairs under `skip_similarity`
    and `skip_signature` are looked at.

    `pixels`: False compares none: a user's own embeddings, or images that are gone. Then similarity alone decides and
    no image is opened: a candidate is `near_identical` from `near_similarity` on, else `look_alike`.
    """

    side: int = 160
    least_windows: int = 10
    agreement: float = 0.85
    overlaid_agreement: float = 0.55
    mirrored_agreement: float = 0.6
    moved: float = 0.985
    one_sided: float = 0.22
    residual: float = 0.33
    overlaid_residual: float = 0.29
    pinned_residual: float = 0.4
    mirrored_residual: float = 0.44
    exact_residual: float = 0.1
    contained: float = 0.996
    skew: float = 0.8
    clean_skew: float = 0.3
    turn: float = 2.0
    flat_difference: float = 2.0
    overlay: float = 0.004
    drift: float = 0.6
    settled: float = 0.6
    patch_similarity: float = 0.8
    tolerance: float = 3.0
    least_inliers: int = 6
    scene_inliers: int = 12
    skip_similarity: float = 0.98
    skip_signature: float = 0.98
    pixels: bool = True
    near_similarity: float = 0.95

    @property
    def how(self) -> str:
        """What is done with candidates, for the log and the summary."""
        return "pairs are compared pixel by pixel" if self.pixels else "pairs are judged by similarity alone"

    def __post_init__(self) -> None:
        """Raise UsageError, all problems in one message."""
        shares = (
            "agreement", "overlaid_agreement", "mirrored_agreement", "moved", "one_sided", "residual",
            "overlaid_residual", "pinned_residual", "mirrored_residual", "exact_residual", "contained", "overlay",
            "settled", "patch_similarity",
        )  # fmt: skip
        positive = (
            "least_windows", "skew", "clean_skew", "turn", "flat_difference", "drift", "tolerance", "least_inliers",
            "scene_inliers",
        )  # fmt: skip
        problems = [
            f"{name} is {getattr(self, name)}, wanted 0 to 1"
            for name in (*shares, "skip_similarity", "skip_signature", "near_similarity")
            if not 0 <= getattr(self, name) <= 1
        ]
        problems += [
            f"{name} is {getattr(self, name)}, wanted more than 0" for name in positive if not getattr(self, name) > 0
        ]
        if not 64 <= self.side <= 1024:
            problems.append(f"side is {self.side}, wanted 64 to 1024 pixels")
        if problems:
            raise UsageError("verify parameters: " + "; ".join(problems) + ". Correct them and run again.")
