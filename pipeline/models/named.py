"""The models that go by a name: whose file, from where, under which licence, and how its embedding is taken.

None of them ships with the package. `resolve_model` finds the file in the model cache or downloads it, and checks it
against the sha256 below; where each comes from and who vouches for it is in docs/models.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import MappingProxyType

from pipeline.errors import UsageError
from pipeline.kernels.embed import ModelInput

_IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "scale": 1 / 255}
_CLIP = {
    "mean": (0.48145466, 0.4578275, 0.40821073),
    "std": (0.26862954, 0.26130258, 0.27577711),
    "scale": 1 / 255,
}
_HUGGING_FACE = "https://huggingface.co"
_ZOO = "https://media.githubusercontent.com/media/onnx/models/b1eeaa1ac722dcc1cd1a8284bde34393dab61c3d"


@dataclass(frozen=True)
class NamedModel:
    """One model of the table. file: its name in the cache; urls: tried in this order; size in bytes, 0 = not recorded.

    tensor: the one of the graph that holds the embedding, "" = the first output that is one vector an image; token:
    which vector of (n, tokens, dimension), None = the tensor is one vector an image.
    """

    name: str
    title: str
    urls: tuple[str, ...]
    sha256: str
    size: int
    licence: str
    citation: str
    dimension: int
    input: ModelInput
    tensor: str = ""
    token: int | None = None

    @property
    def file(self) -> str:
        """Name of the file in the model cache."""
        return f"{self.name}.onnx"

    @property
    def note(self) -> str:
        """One line on what it is and what its licence is."""
        return f"model {self.name}: {self.title}; {self.licence}. Cite: {self.citation}"


def _float_input(side: int, normalised: dict[str, object], layout: str = "NCHW") -> ModelInput:
    return ModelInput(side, side, layout=layout, dtype="float32", **normalised)  # type: ignore[arg-type]


_DINO = "Oquab et al. 2023, DINOv2 (arXiv:2304.07193)"
_CLIP_PAPER = "Radford et al. 2021, CLIP (arXiv:2103.00020)"
_CLIP_LICENCE = "MIT, code and weights (OpenAI); its model card asks for tests of your own before any deployment"

_TABLE = (
    NamedModel(
        name="dinov2s",
        title="DINOv2 ViT-S/14 of Meta AI, ONNX by Xenova",
        urls=(f"{_HUGGING_FACE}/Xenova/dinov2-small/resolve/c2bb04a51fab207c420665f1946016107bffc701/onnx/model.onnx",),
        sha256="83141175ec78b4ff9a2bb58a4c7c264ba0054d1c2e122e5a8114b79a8d4179ea",
        size=88_459_888,
        licence="Apache-2.0, code and weights (Meta AI)",
        citation=_DINO,
        dimension=384,
        input=_float_input(224, _IMAGENET),
        tensor="last_hidden_state",
        token=0,
    ),
    NamedModel(
        name="dinov2b",
        title="DINOv2 ViT-B/14 of Meta AI, ONNX by Xenova",
        urls=(f"{_HUGGING_FACE}/Xenova/dinov2-base/resolve/d623d125a29e343851bcedff293fdc8b6bda292b/onnx/model.onnx",),
        sha256="de9c675d214f0171285f90f1d1d7716bce1c5e280e93826d071d57f7b9314d98",
        size=346_555_570,
        licence="Apache-2.0, code and weights (Meta AI)",
        citation=_DINO,
        dimension=768,
        input=_float_input(224, _IMAGENET),
        tensor="last_hidden_state",
        token=0,
    ),
    NamedModel(
        name="clip",
        title="CLIP ViT-B/32 of OpenAI, image side, ONNX by Qdrant",
        urls=(
            f"{_HUGGING_FACE}/Qdrant/clip-ViT-B-32-vision/resolve/e0c24ed0fa57fa3e4f97f30de74c51d944036ace/model.onnx",
        ),
        sha256="c68d3d9a200ddd2a8c8a5510b576d4c94d1ae383bf8b36dd8c084f94e1fb4d63",
        size=351_686_194,
        licence=_CLIP_LICENCE,
        citation=_CLIP_PAPER,
        dimension=512,
        input=_float_input(224, _CLIP),
    ),
    NamedModel(
        name="clip336",
        title="CLIP ViT-L/14 at 336 pixels of OpenAI, image side, ONNX by Xenova",
        urls=(
            f"{_HUGGING_FACE}/Xenova/clip-vit-large-patch14-336/resolve/034602672837a020d68a66f760ea1e27412e37be/onnx/"
            "vision_model.onnx",
        ),
        sha256="6c4567c7cea5e0720f18fb342287cff73ebbd35ecead845bac14b6cefed05c45",
        size=0,  # 1.22 GB; the exact number is not published where this could be checked
        licence=_CLIP_LICENCE,
        citation=_CLIP_PAPER,
        dimension=768,
        input=_float_input(336, _CLIP),
        tensor="image_embeds",
    ),
    NamedModel(
        name="resnet50",
        title="ResNet-50 v1 of MXNet's model zoo, ONNX by the ONNX Model Zoo (resnet50-v1-12)",
        urls=(
            f"{_HUGGING_FACE}/onnxmodelzoo/resnet50-v1-12/resolve/1f95315d8bd3b3ca2ceabe54d274e0cdf5a83bbe/"
            "resnet50-v1-12.onnx",
            f"{_ZOO}/validated/vision/classification/resnet/model/resnet50-v1-12.onnx",
        ),
        sha256="3f03fdef724b22947eed826f1eef1dc5c34151bb4c37d634f1db89dfa2dd1526",
        size=102_576_593,
        licence="Apache-2.0, code and weights (ONNX Model Zoo; trained on ImageNet-1k)",
        citation="He et al. 2015, Deep residual learning (arXiv:1512.03385)",
        dimension=2048,
        input=_float_input(224, _IMAGENET),
        tensor="resnetv17_pool1_fwd",
    ),
    NamedModel(
        name="efficientnet",
        title="EfficientNet-Lite4 of Google, ONNX by the ONNX Model Zoo (efficientnet-lite4-11)",
        urls=(
            f"{_HUGGING_FACE}/onnx/EfficientNet-Lite4/resolve/69e036d205618d72e83b24b23cb9e0f7db05e720/"
            "efficientnet-lite4-11.onnx",
            f"{_ZOO}/validated/vision/classification/efficientnet-lite4/model/efficientnet-lite4-11.onnx",
        ),
        sha256="d111689907c06eea7c82e4833ddef758da6453b9d4cf60b7e99ca05c7cbd9c12",
        size=51_946_641,
        licence="Apache-2.0 weights (Google, trained on ImageNet-1k), MIT for the ONNX file (ONNX Model Zoo)",
        citation="Tan and Le 2019, EfficientNet (arXiv:1905.11946)",
        dimension=1280,
        input=_float_input(
            224, {"mean": (127.0, 127.0, 127.0), "std": (128.0, 128.0, 128.0), "scale": 1.0}, layout="NHWC"
        ),
        tensor="efficientnet-lite4/model/head/AvgPool:0",
    ),
)
NAMED: MappingProxyType[str, NamedModel] = MappingProxyType({model.name: model for model in _TABLE})
HIGH_ACCURACY = "high_accuracy"
"""The larger variant of the default model, which is built: the other name that `resolve_model` knows."""


def is_model_name(text: str) -> bool:
    """Whether a user's --model is a name of the table rather than a path."""
    return text in NAMED or text == HIGH_ACCURACY


def named_model(name: str) -> NamedModel:
    """The row of a name. UsageError for any other, with those that there are."""
    if name not in NAMED:
        raise UsageError(f"no model is named {name!r}; known: {', '.join([*NAMED, HIGH_ACCURACY])}, or a path to one")
    return NAMED[name]
