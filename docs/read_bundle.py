"""Score photos with a CALM bundle and nothing of CALM: onnxruntime, numpy, Pillow and tokenizers.

The companion of bundle.md, as short as it can be: `python read_bundle.py BUNDLE PHOTO...` prints one JSON object per
photo with its score, technical rating, percentile, spread and attributes. It leaves out no frames: give it photographs
without a border, or cut the border off before, as bundle.md says.
"""

import json
import os
import struct
import sys
from io import BytesIO
from pathlib import Path

import numpy as np

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # read when onnxruntime is imported
import onnxruntime
from PIL import Image, ImageCms, ImageOps
from tokenizers import Tokenizer

SHRINKABLE = ("L", "RGB", "CMYK", "YCbCr")


def decode(path: str, spec: dict) -> Image.Image:
    """Photo file -> upright sRGB picture."""
    twice = 2 * spec["size"]
    picture = Image.open(path)
    longer = max(picture.size)
    if longer > twice:  # JPEG only: decode at 1/2, 1/4 or 1/8 of the size
        picture.draft(None, tuple(max(1, side * twice // longer) for side in picture.size))
    picture.load()
    factor = next((f for f in (8, 4, 2) if max(picture.size) // f >= twice), 1)
    if factor > 1 and picture.mode in SHRINKABLE and not picture.has_transparency_data:
        info = dict(picture.info)
        picture = picture.reduce(factor)
        picture.info = info
    picture = ImageOps.exif_transpose(picture)
    profile = picture.info.get("icc_profile")
    if picture.mode in ("P", "PA") or picture.has_transparency_data:
        picture = picture.convert("RGBA")
        canvas = Image.new("RGB", picture.size, tuple(spec["pad_color"]))
        canvas.paste(to_srgb(picture.convert("RGB"), profile), mask=picture.getchannel("A"))
        return canvas
    return to_srgb(picture, profile)


def to_srgb(picture: Image.Image, profile: bytes | None) -> Image.Image:
    if picture.mode.startswith("I;16"):
        picture = Image.fromarray(np.rint(np.asarray(picture) / 257).astype(np.uint8))
    if profile:
        try:
            source = ImageCms.ImageCmsProfile(BytesIO(profile))
            if picture.mode != "RGB" or not ImageCms.getProfileDescription(source).startswith("sRGB"):
                return ImageCms.profileToProfile(picture, source, ImageCms.createProfile("sRGB"), outputMode="RGB")
        except (OSError, ImageCms.PyCMSError):
            pass  # a profile that is broken or does not fit the picture is ignored
    return picture.convert("RGB")


def to_pixel_values(picture: Image.Image, spec: dict) -> np.ndarray:
    """Picture -> [1, 3, S, S] float32."""
    size = spec["size"]
    scale = size / max(picture.size)
    width, height = (max(1, round(side * scale)) for side in picture.size)
    if spec["fit"] == "stretch":
        width = height = size
    canvas = Image.new("RGB", (size, size), tuple(spec["pad_color"]))
    resized = picture.resize((width, height), Image.Resampling.BICUBIC)
    canvas.paste(resized, ((size - width) // 2, (size - height) // 2))
    pixels = np.asarray(canvas, np.float32) / np.float32(255)  # [S, S, 3]
    pixels = (pixels - np.float32(spec["mean"])) / np.float32(spec["std"])
    return np.ascontiguousarray(pixels.transpose(2, 0, 1))[None]


def read_embed_tokens(path: Path) -> np.ndarray:
    """The one tensor of embed_tokens.safetensors, [V, D]."""
    raw = path.read_bytes()
    (length,) = struct.unpack("<Q", raw[:8])
    entry = json.loads(raw[8 : 8 + length])["embed_tokens"]
    start, end = (8 + length + offset for offset in entry["data_offsets"])
    dtype = {"F32": "<f4", "F16": "<f2"}[entry["dtype"]]
    return np.frombuffer(raw[start:end], dtype).reshape(entry["shape"])


def split_prompt(prompt: list, tokenizer: Tokenizer, bos: int) -> tuple[list, list]:
    """Token ids before and after the image slot."""
    before, after = [], []
    target = before
    for part in prompt:
        if "text" in part:
            target += tokenizer.encode(part["text"], add_special_tokens=False).ids
        elif part["slot"] == "bos":
            target.append(bos)
        elif part["slot"] == "image":
            target = after
    return before, after


def softmax(logits: np.ndarray) -> np.ndarray:
    """Over the last axis, in float64."""
    powers = np.exp(logits.astype(np.float64) - logits.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def name_levels(attributes: list, probabilities: np.ndarray) -> dict:
    """Probabilities [A, 3] -> attribute name -> most probable level, and the probability of each level."""
    named = {}
    for attribute, row in zip(attributes, probabilities, strict=True):
        levels = [level["name"] for level in attribute["levels"]]
        named[attribute["name"]] = {
            "level": levels[row.argmax()],
            "probabilities": dict(zip(levels, row.tolist(), strict=True)),
        }
    return named


def run(session: onnxruntime.InferenceSession, feeds: dict) -> dict:
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds), strict=True))


def main(bundle: Path, photos: list[str]) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text("utf-8"))
    graphs = {g["stage"]: bundle / g["path"] for g in manifest["graphs"] if g["target"] == "cpu"}
    sessions = {s: onnxruntime.InferenceSession(p, providers=["CPUExecutionProvider"]) for s, p in graphs.items()}
    tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
    tokenizer.encode_special_tokens = True  # text is text, even when it spells a special token
    table = read_embed_tokens(bundle / "embed_tokens.safetensors")
    llm, score, technical = (manifest[key] for key in ("llm", "score", "technical"))
    quantiles = manifest["reference"]["quantiles"]
    before, after = split_prompt(manifest["prompts"]["score"], tokenizer, llm["bos_token_id"])

    for photo in photos:
        pixels = to_pixel_values(decode(photo, manifest["photo"]), manifest["photo"])
        hidden = run(sessions["vision_encoder"], {"pixel_values": pixels})
        del hidden["photo_embeds"]  # the photo as one vector, for other uses
        aligned = run(sessions["aligner"], hidden)
        image_embeds = aligned["image_embeds"]  # [1, T, D]
        embeds = np.concatenate([table[before][None], image_embeds, table[after][None]], axis=1).astype(np.float32)
        feeds = {"inputs_embeds": embeds, "attention_mask": np.ones(embeds.shape[:2], np.int64)}
        for layer in range(llm["layers"]):
            for half in ("key", "value"):
                empty = np.zeros((1, llm["kv_heads"], 0, llm["head_dim"]), np.float32)
                feeds[f"past_key_values.{layer}.{half}"] = empty
        logits = run(sessions["llm"], feeds)["logits"][0, -1]  # [V]
        histogram = softmax(logits[score["token_ids"]])
        ratings = np.arange(score["low"], score["high"] + 1)
        mean = histogram @ ratings
        undamaged = softmax(logits[technical["token_ids"]]) @ ratings
        percentile = np.interp(mean, quantiles, np.linspace(0, 100, len(quantiles)))
        spread = np.sqrt(max(0.0, histogram @ ratings**2 - mean**2))
        attributes = name_levels(manifest["attributes"], softmax(aligned["attribute_logits"][0]))
        told = {"score": mean, "technical": undamaged, "percentile": percentile, "std": spread}
        print(json.dumps({"path": photo, **told, "attributes": attributes}))


if __name__ == "__main__":
    if len(sys.argv) < 3 or not Path(sys.argv[1], "manifest.json").is_file():
        sys.exit("usage: read_bundle.py BUNDLE PHOTO...   (BUNDLE: a folder with a manifest.json)")
    main(Path(sys.argv[1]), sys.argv[2:])
