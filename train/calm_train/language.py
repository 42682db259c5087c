"""Before stage 1: a small LLM from scratch learns the language of cues, critiques and suggestions.

A pretrained LLM skips this. The texts are written for random attribute levels, so they hold no photo's answer.
"""

from __future__ import annotations

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import get_cosine_schedule_with_warmup

from calm_runtime.attributes import ATTRIBUTES, LEVELS_PER_ATTRIBUTE, SCALES
from calm_runtime.prompt import PROMPTS, split_prompt
from calm_runtime.score import SCORE_TOKENS, TECHNICAL_TOKENS
from calm_train.data import PromptEncoder, pad_right
from calm_train.model import CalmForConditionalGeneration
from calm_train.objectives import GenerationObjective
from calm_train.precision import usable_precision
from calm_train.pretext.edits import EDITS
from calm_train.pretext.texts import NOTHING_TO_DO, comment_text, cue_text, question_and_answer, suggestion
from calm_train.pretext.view import AppliedEdit
from calm_train.recipe import LanguageRecipe

SPECIAL_TOKENS = ("<pad>", "<s>", "</s>", *SCORE_TOKENS, *TECHNICAL_TOKENS)


def random_text(rng: np.random.Generator) -> tuple[str, str | None, str]:
    """(task, question, answer) for random attribute levels and edits."""
    levels = tuple(int(level) for level in rng.integers(LEVELS_PER_ATTRIBUTE, size=len(ATTRIBUTES)))
    kind = int(rng.integers(4))
    if kind == 0:
        return "comment", None, comment_text(levels, rng)
    if kind == 1:
        return "comment", None, cue_text(levels, SCALES[rng.integers(3)], rng)
    if kind == 2:
        names = rng.choice(list(EDITS), size=int(rng.integers(0, 3)), replace=False)
        edits = [AppliedEdit(str(n), float(rng.uniform()), float(rng.uniform(-3.5, 3.5))) for n in names]
        shift = (float(rng.normal()), float(rng.normal()))
        return "suggest", None, " ".join(suggestion(edit, shift) for edit in edits) or NOTHING_TO_DO
    question, answer = question_and_answer(levels, rng)
    return "ask", question, answer


def train_tokenizer(vocabulary: int, sentences: int, seed: int) -> Tokenizer:
    """Byte-level BPE on the pretext texts: small, and still able to encode anything a user may ask."""
    rng = np.random.default_rng((seed, 1))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    prompts = [part.text for prompt in PROMPTS.values() for part in prompt if part.text]
    texts = (" ".join(part or "" for part in random_text(rng)[1:]) for _ in range(sentences))
    tokenizer.train_from_iterator([*prompts * 50, *texts], trainer)
    return tokenizer


def train_language(
    model: CalmForConditionalGeneration, tokenizer: Tokenizer, settings: LanguageRecipe, seed: int
) -> float:
    """Teach the LLM the texts. Returns the last loss in nats per token."""
    encoder = PromptEncoder(tokenizer, model.config.text_config)
    rng = np.random.default_rng((seed, 2))
    optimizer = torch.optim.AdamW(model.llm.parameters(), lr=settings.learning_rate, weight_decay=0.05)
    schedule = get_cosine_schedule_with_warmup(optimizer, 50, settings.steps)
    objective = GenerationObjective()
    average = 0.0
    model.llm.train()
    bar = Console(stderr=True)
    low = usable_precision("bf16") == "bf16"
    device = "cuda" if torch.cuda.is_available() else "cpu"
    nn.Module.to(model.llm, device)
    for step in track(range(settings.steps), "language", console=bar, disable=not bar.is_terminal):
        ids, labels = [], []
        for _ in range(settings.batch_size):
            task, question, answer = random_text(rng)
            before, after = split_prompt(PROMPTS[task], encoder, question)
            reply = encoder.answer(answer)
            ids.append([*before, *after, *reply])
            labels.append([*[-100] * (len(before) + len(after)), *reply])
        inputs, targets = (pad_right(*rows).to(device) for rows in ((ids, encoder.pad_token_id), (labels, -100)))
        with torch.autocast(device, dtype=torch.bfloat16, enabled=low):
            logits = model.llm(input_ids=inputs, use_cache=False).logits
        loss = objective(logits[:, :-1], targets[:, 1:])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.llm.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        average = loss.item() if step == 0 else 0.95 * average + 0.05 * loss.item()
    nn.Module.to(model.llm, "cpu")
    return average


@torch.no_grad()
def encode_cues(model: CalmForConditionalGeneration, tokenizer: Tokenizer) -> None:
    """Fill the cue space's text features: the LLM's final states, averaged over each phrase's tokens."""
    encoder = PromptEncoder(tokenizer, model.config.text_config)
    features = model.aligner.cues.features
    model.llm.eval()
    for a, attribute in enumerate(ATTRIBUTES):
        for index, level in enumerate(attribute.levels):
            for k, phrase in enumerate(level.phrases[: features.shape[2]]):
                ids = torch.tensor([[encoder.bos_token_id, *encoder.encode(" " + phrase)]])
                states = model.llm.model(input_ids=ids, use_cache=False).last_hidden_state
                features[a, index, k] = states[0, 1:].mean(dim=0)
