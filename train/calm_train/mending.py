"""Training of the network behind suggestions: photos are spoiled in known ways, its edits must bring them back.

The edits are those of `calm_runtime.retouch`, once more in PyTorch, because the loss is what a person would see: the mean
distance in L*a*b* between the mended and the untouched photo. Features and edits work on thumbnails, so a laptop does it.
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from rich.console import Console
from rich.progress import track
from safetensors.torch import save_file
from torch import Tensor, nn

from calm_runtime.detail import measure_detail
from calm_runtime.lab import EPSILON, KAPPA, TO_XYZ
from calm_runtime.mending import INFO, KINDS, MOST_FEATURE, REACH, SIDE, MendingInfo, tone_features
from calm_runtime.retouch import LUMA, LUMINANCE, TINT_AXIS, WARMTH_AXIS
from calm_train.library import Picture
from calm_train.pretext.edits import EDITS, to_linear, to_srgb
from calm_train.pretext.view import another_rendering, random_frame, to_tensor

FAULTS = {
    "underexposed": "exposure",
    "overexposed": "exposure",
    "colour cast": "white balance",
    "flat": "contrast",
    "hazy": "contrast",
    "desaturated": "saturation",
    "oversaturated": "saturation",
}
COUNTS = (0.2, 0.5, 0.22, 0.08)  # share of photos with no fault, one, two, three
HIDDEN = 128
LEAK = 0.02  # of the gradient beyond black and white
PIXELS = 600  # of a thumbnail, per step
BATCH, FEATURE_BATCH = 64, 256
LEARNING_RATE, WEIGHT_DECAY, DROPOUT = 2e-3, 0.02, 0.1
KIND_WEIGHT, HARM_WEIGHT = 0.5, 0.6


class Examples(msgspec.Struct, frozen=True):
    """Untouched and spoiled thumbnails [N, SIDE, SIDE, 3] uint8, and which kinds of fault were made [N, K]."""

    untouched: np.ndarray
    spoiled: np.ndarray
    faults: np.ndarray


def make_examples(pictures: list[Picture], count: int, seed: int) -> Examples:
    """Random frames and renderings of the photos, spoiled at random; from the seed alone."""
    rng = np.random.default_rng(seed)
    untouched = np.empty((count, SIDE, SIDE, 3), np.uint8)
    spoiled = np.empty_like(untouched)
    faults = np.zeros((count, len(KINDS)), np.float32)
    bar = Console(stderr=True)
    for row in track(range(count), "examples", console=bar, transient=True, disable=not bar.is_terminal):
        frame = random_frame(to_tensor(pictures[int(rng.integers(len(pictures)))]), rng)
        photo = another_rendering(_thumbnail(frame), rng)
        changed = photo
        wanted = int(rng.choice(len(COUNTS), p=COUNTS))
        for name in rng.permutation(list(FAULTS)):
            kind = KINDS.index(FAULTS[str(name)])
            if faults[row].sum() < wanted and not faults[row, kind]:
                faults[row, kind] = 1
                changed = EDITS[str(name)].apply(changed, float(rng.uniform()), rng).clamp(0, 1)
        for store, picture in ((untouched, photo), (spoiled, changed)):
            store[row] = (picture * 255).round().permute(1, 2, 0).byte().numpy()
    return Examples(untouched, spoiled, faults)


def _thumbnail(rgb: Tensor) -> Tensor:
    """[3, H, W] -> [3, SIDE, SIDE]: means over areas, as the runtime's box filter."""
    return F.interpolate(rgb[None], size=(SIDE, SIDE), mode="area")[0]


def features_of(thumbnails: np.ndarray) -> Tensor:
    """uint8 [N, SIDE, SIDE, 3] -> [N, F], by the runtime's own code."""
    parts = [
        tone_features(thumbnails[start : start + FEATURE_BATCH].astype(np.float32) / np.float32(255))
        for start in range(0, len(thumbnails), FEATURE_BATCH)
    ]
    return torch.from_numpy(np.concatenate(parts))


class MendingNetwork(nn.Module):
    """Two hidden layers, then amounts (see REACH) and the log odds of each kind of fault."""

    mean: Tensor
    std: Tensor

    def __init__(self, features: Tensor) -> None:
        """features: of all examples; their mean and spread standardise what comes in."""
        super().__init__()
        self.register_buffer("mean", features.mean(0))
        self.register_buffer("std", features.std(0) + 1e-3)
        self.first = nn.Linear(features.shape[1], HIDDEN)
        self.second = nn.Linear(HIDDEN, HIDDEN)
        self.amounts = nn.Linear(HIDDEN, len(REACH))
        self.kinds = nn.Linear(HIDDEN, len(KINDS))
        nn.init.zeros_(self.amounts.weight)  # to begin with, nothing is changed
        nn.init.zeros_(self.amounts.bias)

    def forward(self, features: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        """[B, F] -> amounts by the names of REACH, each [B], and log odds [B, K]."""
        hidden = ((features - self.mean) / self.std).clamp(-MOST_FEATURE, MOST_FEATURE)
        for layer in (self.first, self.second):
            hidden = F.dropout(F.gelu(layer(hidden), approximate="tanh"), DROPOUT, self.training)
        amounts = self.amounts(hidden).tanh() * torch.tensor(list(REACH.values()))
        return dict(zip(REACH, amounts.unbind(1), strict=True)), self.kinds(hidden)


def apply_mending(pixels: Tensor, amounts: dict[str, Tensor], made: Tensor) -> Tensor:
    """Edits of `calm_runtime.retouch`, in the order of KINDS: pixels [B, N, 3]; made [B, K], 1 for kinds to apply."""
    exposure, balance, contrast, saturation = made.unbind(1)
    tilt = torch.from_numpy(np.stack([WARMTH_AXIS, TINT_AXIS]))  # [2, 3]
    stops = torch.stack([amounts["warmth"], amounts["tint"]], 1) * balance[:, None] @ tilt  # [B, 3]
    stops = stops - (stops @ torch.from_numpy(LUMINANCE))[:, None]
    luma = torch.from_numpy(LUMA)
    lit = to_srgb(to_linear(pixels) * (2.0 ** (stops + (amounts["stops"] * exposure)[:, None]))[:, None])
    pivot = ((lit @ luma).mean(1) + amounts["pivot"] * contrast)[:, None, None]
    stretched = _clip(pivot + (lit - pivot) * (amounts["log_contrast"] * contrast).exp()[:, None, None])
    grey = (stretched @ luma)[..., None]
    return _clip(grey + (stretched - grey) * (amounts["log_saturation"] * saturation).exp()[:, None, None])


def _clip(values: Tensor) -> Tensor:
    """0..1, with a little gradient beyond, or what was once clipped could never come back."""
    inside = values.clamp(0, 1)
    return inside + LEAK * (values - inside)


def lab_distance(one: Tensor, other: Tensor) -> Tensor:
    """Mean CIE76 difference of pixels [B, N, 3], per photo [B]."""
    return ((_lab(one) - _lab(other)).square().sum(-1) + 1e-2).sqrt().mean(1)


def _lab(rgb: Tensor) -> Tensor:
    scaled = to_linear(rgb) @ torch.from_numpy(TO_XYZ.T.astype(np.float32))
    root = torch.where(scaled > EPSILON, scaled.clamp(min=1e-6) ** (1 / 3), (KAPPA * scaled + 16) / 116)
    x, y, z = root.unbind(-1)
    return torch.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], dim=-1)


def mending_loss(net: MendingNetwork, features: Tensor, untouched: Tensor, spoiled: Tensor, faults: Tensor) -> Tensor:
    """Distance that is left, distance that was added, and the kinds of fault: features [B, F], pixels [B, N, 3], faults [B, K].

    Half of the photos are mended by all that the network says, half by the kinds that were at fault, so that an edit is
    right alone and in company.
    """
    amounts, kinds = net(features)
    whole = torch.rand(len(faults), 1) < 0.5
    left = lab_distance(apply_mending(spoiled, amounts, torch.where(whole, torch.ones(()), faults)), untouched)
    harm = F.relu(left - lab_distance(spoiled, untouched))
    named = F.binary_cross_entropy_with_logits(kinds, faults)
    return left.mean() / 10 + HARM_WEIGHT * harm.mean() / 10 + KIND_WEIGHT * named


def train_mending(examples: Examples, steps: int, seed: int) -> MendingNetwork:
    """Fit the network to the examples."""
    torch.manual_seed(seed)
    features = features_of(examples.spoiled)
    pixels = [torch.from_numpy(part).flatten(1, 2) for part in (examples.untouched, examples.spoiled)]
    faults = torch.from_numpy(examples.faults)
    net = MendingNetwork(features)
    optimizer = torch.optim.AdamW(net.parameters(), LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, LEARNING_RATE, total_steps=steps)
    bar = Console(stderr=True)
    for _ in track(range(steps), "mending", console=bar, transient=True, disable=not bar.is_terminal):
        rows = torch.randint(len(features), (BATCH,))
        kept = torch.randperm(SIDE * SIDE)[:PIXELS]
        untouched, spoiled = (part[rows][:, kept].float() / 255 for part in pixels)
        loss = mending_loss(net, features[rows], untouched, spoiled, faults[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return net.eval()


def save_mending(net: MendingNetwork, pictures: list[Picture], source: str, steps: int, file: Path) -> None:
    """Write the weights as the runtime reads them, with what is usual of noise and detail among the photos."""
    noises, details = zip(*(measure_detail(Image.fromarray(picture)) for picture in pictures), strict=True)
    noisy, soft = float(np.percentile(noises, 90)), float(np.percentile(details, 10))
    info = MendingInfo(len(pictures), source, steps, round(noisy, 5), round(soft, 5))
    tensors = {name: value.contiguous() for name, value in net.state_dict().items()}
    save_file(tensors, str(file), metadata={INFO: msgspec.json.encode(info).decode()})
