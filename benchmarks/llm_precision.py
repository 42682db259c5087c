"""What each precision of the LLM costs, measured on a trained model, and which of its layers mind being coarse.

python benchmarks/llm_precision.py --photos DIR [--checkpoint models/calm-nano]

Writes llm_precision.json and .md beside itself. Per precision: size, scores against PyTorch, and, along the comments
that the fp32 graph writes greedily, how often the same next token is the most probable one (top-1 agreement) and the
perplexity of those comments. Weight-only precisions are rounded from the weights alone; photos serve to judge them, not
to calibrate them. The second table rounds one group of layers at a time to 4 bits in blocks of 32, in PyTorch.
"""

from __future__ import annotations

import json
import math
import platform
import tempfile
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from calm_export import parity
from calm_export.llm import PRECISIONS, Provider, export_embed_tokens, export_llm, llm_spec, write_llm_source
from calm_export.photos import parity_photos
from calm_runtime.llm import LanguageModel, read_embed_tokens
from calm_runtime.onnx_session import OnnxSession
from calm_runtime.prompt import split_prompt
from calm_runtime.rank_correlation import srcc
from calm_runtime.text import TextTokenizer
from calm_train.checkpoint import load_checkpoint

HERE = Path(__file__).parent
COMMENTED = 24  # photos whose comments are followed token by token
LONGEST = 60  # tokens of a comment
BLOCK = 32
GRAPHS: tuple[tuple[str, Provider], ...] = (*((name, "cpu") for name in PRECISIONS), ("fp16", "cuda"))


def follow(llm: LanguageModel, image: np.ndarray, before: list[int], after: list[int], ids: list[int]) -> np.ndarray:
    """Logits [len(ids), V] that predict each token of `ids` after the prompt and its photo."""
    parts = [llm.embed(before), image, llm.embed(after)]
    logits, cache = llm.prefill(np.concatenate(parts)[None])
    rows = [logits[0]]
    for token in ids[:-1]:
        logits, cache = llm.prefill(llm.embed([token])[None], cache)
        rows.append(logits[0])
    return np.stack(rows).astype(np.float64)


def rounded(weight: Tensor) -> Tensor:
    """Symmetric 4-bit rounding of [out, in] in blocks of BLOCK inputs."""
    blocks = weight.reshape(weight.shape[0], -1, BLOCK)
    step = blocks.abs().amax(-1, keepdim=True) / 7
    return ((blocks / step.clamp(min=1e-12)).round().clamp(-8, 7) * step).reshape(weight.shape)


def coarse_groups(llm: nn.Module) -> Iterator[tuple[str, list[nn.Linear]]]:
    """The LLM's linear layers: by kind over all layers, then by layer."""
    layers = {name: module for name, module in llm.named_modules() if isinstance(module, nn.Linear)}
    by: dict[str, list[nn.Linear]] = {}
    for name, module in layers.items():
        by.setdefault(f"all {name.split('.')[-1]}", []).append(module)
    for name, module in layers.items():
        if ".layers." in name:
            by.setdefault(f"layer {name.split('.layers.')[1].split('.')[0]}", []).append(module)
    yield from by.items()


@click.command(help=__doc__)
@click.option("--photos", type=click.Path(path_type=Path), required=True)
@click.option("--checkpoint", default="models/calm-nano", show_default=True)
def main(photos: Path, checkpoint: str) -> None:
    model, tokenizer, info = load_checkpoint(checkpoint)
    model.eval()
    bar = Console(stderr=True)
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        tokenizer.save(str(work / "tokenizer.json"))
        spec = llm_spec(model.config.text_config)
        text = TextTokenizer(work / "tokenizer.json", spec.bos_token_id)
        pixels = parity.pixel_batch((photo.picture for photo in parity_photos(info.photo, photos, ())), info.photo)
        rating_ids = parity.rating_ids(model.config)
        reference = parity.torch_side(model, pixels, info.prompts["score"], text)
        images = reference.features["image_embeds"]
        export_embed_tokens(model, work / "embed.safetensors", torch.float32)
        table = read_embed_tokens(work / "embed.safetensors")
        source = write_llm_source(model, tokenizer, work / "source")
        llms, sizes = {}, {}
        for precision, provider in track(GRAPHS, "building", console=bar):
            files = export_llm(source, precision, work / precision, provider)  # type: ignore[arg-type]
            sizes[precision] = sum(f.stat().st_size for f in files if "onnx" in f.name) / 1e6
            llms[precision] = LanguageModel(OnnxSession(work / precision / "model.onnx"), table, spec)
        before, after = split_prompt(info.prompts["comment"], text)
        comments = []
        for image in images[:COMMENTED]:
            _, cache = llms["fp32"].prefill(np.concatenate([llms["fp32"].embed(before), image])[None])
            barred = {*rating_ids.scores, *rating_ids.technical, spec.bos_token_id, spec.pad_token_id} - {
                spec.eos_token_id
            }
            written = llms["fp32"].generate(cache, after, LONGEST, stop={spec.eos_token_id}, forbidden=barred)
            comments.append(list(written))
        rows: list[dict[str, Any]] = []
        for precision, llm in track(llms.items(), "following comments", console=bar):
            scores = parity.onnx_ratings(llm, images, info.prompts["score"], text, rating_ids).scores
            same, loss, count = 0, 0.0, 0
            for image, ids in zip(images, comments, strict=False):
                logits = follow(llm, image, before, after, ids)
                same += int((logits.argmax(-1) == ids).sum())
                peak = logits.max(-1, keepdims=True)
                log_sum = np.log(np.exp(logits - peak).sum(-1)) + peak[:, 0]
                loss += float((log_sum - logits[np.arange(len(ids)), ids]).sum())
                count += len(ids)
            difference = np.abs(scores - reference.ratings.scores)
            gate = parity.MAX_SCORE_DIFFERENCE[precision]
            rows.append(
                {
                    "precision": precision,
                    "megabytes": round(sizes[precision], 2),
                    "score_difference_max": round(float(difference.max()), 4),
                    "score_difference_mean": round(float(difference.mean()), 4),
                    "srcc": round(srcc(reference.ratings.scores, scores), 5),
                    "top1_agreement": round(same / count, 4),
                    "perplexity": round(math.exp(loss / count), 4),
                    "gate": gate,
                    "passes": bool(
                        difference.max() <= gate and srcc(reference.ratings.scores, scores) >= parity.MIN_SRCC
                    ),
                }
            )
        mind = sensitivity(model, torch.from_numpy(images), info.prompts["score"], text, reference.ratings.scores, bar)
    header = {
        "date": date.today().isoformat(),
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "checkpoint": f"{info.model.name} {info.model.version}",
        "photos": len(images),
        "comment_tokens": sum(len(ids) for ids in comments),
    }
    (HERE / "llm_precision.json").write_text(
        json.dumps({**header, "precisions": rows, "sensitivity": mind}, indent=2) + "\n"
    )
    page = render(header, rows, mind)
    (HERE / "llm_precision.md").write_text(page)
    click.echo(page)


@torch.inference_mode()
def sensitivity(model, images: Tensor, prompt, text, wanted: np.ndarray, bar: Console) -> list[dict[str, Any]]:
    """Score difference against PyTorch when one group of layers is rounded to 4 bits and all else stays as it is."""
    before, after = (torch.tensor([side]).expand(len(images), -1) for side in split_prompt(prompt, text))
    rows = []
    for name, layers in track(list(coarse_groups(model.llm)), "rounding", console=bar):
        kept = [layer.weight.data for layer in layers]
        for layer in layers:
            layer.weight = nn.Parameter(rounded(layer.weight.data), requires_grad=False)
        embeds = model.prompt_embeds(images, before, after)
        hidden = model.llm.get_decoder()(inputs_embeds=embeds, use_cache=False).last_hidden_state[:, -1]
        logits = model.get_output_embeddings()(hidden)[:, model.config.score_token_ids]
        for layer, weight in zip(layers, kept, strict=True):
            layer.weight = nn.Parameter(weight, requires_grad=False)
        difference = np.abs(parity.scores_of(logits.numpy()) - wanted)
        weights = sum(weight.numel() for weight in kept)
        rows.append(
            {"layers": name, "weights": weights, "max": float(difference.max()), "mean": float(difference.mean())}
        )
    return rows


def render(header: dict[str, Any], rows: list[dict[str, Any]], mind: list[dict[str, Any]]) -> str:
    """The Markdown page."""
    lines = [
        f"# Precisions of the LLM, {header['checkpoint']}",
        "",
        (
            f"{header['date']}, {header['machine']}; {header['photos']} held-out photos, {header['comment_tokens']} tokens of "
            "comments. Differences are on the 10-point scale, against PyTorch in fp32."
        ),
        "",
        "| precision | MB | score diff max | mean | SRCC | top-1 agreement | perplexity | gate | passes |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
    ]
    lines += [
        f"| {r['precision']} | {r['megabytes']:.1f} | {r['score_difference_max']:.3f} | {r['score_difference_mean']:.3f} | "
        f"{r['srcc']:.4f} | {100 * r['top1_agreement']:.1f}% | {r['perplexity']:.3f} | {r['gate']} | "
        f"{'yes' if r['passes'] else '**no**'} |"
        for r in rows
    ]
    lines += [
        "",
        f"One group of layers rounded to 4 bits in blocks of {BLOCK}, all else in fp32:",
        "",
        "| layers | weights | score diff max | mean |",
        "| --- | ---: | ---: | ---: |",
    ]
    lines += [f"| {r['layers']} | {r['weights']:,} | {r['max']:.3f} | {r['mean']:.4f} |" for r in mind]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
