"""Agreement of generated comments with people's, in the measures of image captioning (COCO's own evaluation code).

METEOR and SPICE run on Java, and SPICE needs Stanford's models beside the package; what is missing is reported as
None with the reason, never fetched.
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track

from calm_runtime import Calm
from calm_runtime.errors import DataError, PhotoError, UsageError
from calm_runtime.photo import leave_out_frame, load_photo, to_pixel_values
from calm_runtime.prompt import split_prompt
from calm_train.checkpoint import find_checkpoint, load_checkpoint
from calm_train.data import PromptEncoder
from calm_train.datasets import CaptionedPhoto, photo_input
from calm_train.datasets.records import PhotoSource

logger = logging.getLogger(__name__)

PACKAGE = "pycocoevalcap"
LONGEST = 160  # new tokens, as the runtime's own limit
Commenter = Callable[[PhotoSource], str]


@dataclass(frozen=True)
class CaptionAgreement:
    """Scores of generated texts against people's. None where a measure could not run; `missing` says why.

    bleu: BLEU-1 to BLEU-4. photos: number compared; failed: photos that could not be read.
    """

    photos: int
    failed: int
    bleu: tuple[float, ...]
    rouge_l: float
    cider: float
    meteor: float | None
    spice: float | None
    tokenizer: str
    missing: dict[str, str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)


def bundle_commenter(calm: Calm) -> Commenter:
    """Comments written by an exported bundle through the runtime."""
    return lambda source: "".join(calm.comment(photo_input(source)))


def checkpoint_commenter(checkpoint: str | Path) -> Commenter:
    """Comments written by the PyTorch model, greedily."""
    model, tokenizer, info = load_checkpoint(find_checkpoint(checkpoint))
    encoder = PromptEncoder(tokenizer, model.config.text_config)
    before, after = (torch.tensor([ids]) for ids in split_prompt(info.prompts["comment"], encoder))
    generate: Callable[..., torch.Tensor] = model.llm.generate  # type: ignore[assignment]
    barred = [[token] for token in (*model.config.score_token_ids, *model.config.technical_token_ids)]

    @torch.inference_mode()
    def comment(source: PhotoSource) -> str:
        picture, _ = leave_out_frame(load_photo(photo_input(source), info.photo), info.photo)
        pixels = torch.from_numpy(to_pixel_values(picture, info.photo))[None]
        embeds = model.prompt_embeds(model.look(pixels).image_embeds, before, after)
        ids = generate(
            inputs_embeds=embeds,
            attention_mask=torch.ones(embeds.shape[:2], dtype=torch.long),
            max_new_tokens=LONGEST,
            do_sample=False,
            bad_words_ids=barred,
            pad_token_id=encoder.pad_token_id,
            eos_token_id=encoder.eos_token_id,
        )
        return str(tokenizer.decode(ids[0].tolist(), skip_special_tokens=True)).strip()

    return comment


def evaluate_captions(comment: Commenter, photos: Sequence[CaptionedPhoto]) -> CaptionAgreement:
    """Comment on all photos and compare. Raises UsageError without the package, DataError without readable photos."""
    if find_spec(PACKAGE) is None:
        raise UsageError(f"captions are compared by {PACKAGE}: pip install 'calm-edge[captions]'")
    written: dict[int, list[str]] = {}
    people: dict[int, list[str]] = {}
    broken = []
    bar = Console(stderr=True)
    described = [photo for photo in photos if photo.texts]
    for number, photo in enumerate(track(described, "comments", console=bar, disable=not bar.is_terminal)):
        try:
            written[number] = [comment(photo.path)]
        except PhotoError as error:
            broken.append(str(error))
            continue
        people[number] = list(photo.texts)
    if broken:
        logger.warning("%d of %d photos could not be read, the first: %s", len(broken), len(described), broken[0])
    if not written:
        raise DataError("none of the described photos can be read")
    return _measure(written, people, len(broken))


def _measure(written: dict[int, list[str]], people: dict[int, list[str]], failed: int) -> CaptionAgreement:
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    java = shutil.which("java") is not None
    missing = {} if java else {"meteor": "needs Java", "spice": "needs Java"}
    tokenize = _penn_treebank if java else _words
    result, truth = tokenize(written), tokenize(people)
    bleu, _ = Bleu(4).compute_score(truth, result, verbose=0)
    meteor = spice = None
    if java:
        from pycocoevalcap.meteor.meteor import Meteor

        meteor = float(Meteor().compute_score(truth, result)[0])
        if _has_stanford_models():
            from pycocoevalcap.spice.spice import Spice

            spice = float(Spice().compute_score(truth, result)[0])
        else:
            missing["spice"] = f"needs Stanford CoreNLP 3.6.0 in {PACKAGE}/spice/lib"
    return CaptionAgreement(
        photos=len(written),
        failed=failed,
        bleu=tuple(float(value) for value in bleu),
        rouge_l=float(Rouge().compute_score(truth, result)[0]),
        cider=float(Cider().compute_score(truth, result)[0]),
        meteor=meteor,
        spice=spice,
        tokenizer="PTB" if java else "words",
        missing=missing,
    )


def _penn_treebank(texts: dict[int, list[str]]) -> dict[int, list[str]]:
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    rows = {key: [{"caption": text} for text in values] for key, values in texts.items()}
    return dict(PTBTokenizer().tokenize(rows))


def _words(texts: dict[int, list[str]]) -> dict[int, list[str]]:
    return {key: [" ".join(re.findall(r"\w+", text.lower())) for text in values] for key, values in texts.items()}


def _has_stanford_models() -> bool:
    spec = find_spec(f"{PACKAGE}.spice")
    places = spec.submodule_search_locations if spec else None
    return any(list(Path(place, "lib").glob("stanford-corenlp-*-models.jar")) for place in places or ())
