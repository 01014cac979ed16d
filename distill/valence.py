"""Which mood does audio convey? A classifier of log-mel spectrograms into the four quadrants of arousal and valence.

After Sukhavasi & Adapa (2019), "Music theme recognition using CNN and self-attention" (arXiv:1911.07041), which *Fast
Jukebox* (Appl. Sci. 2023, 13, 5630) uses for its Table 2: a MobileNetV2 turns the spectrogram into a sequence of
features, and layers of self-attention relate what happens at different times. Theirs is pretrained on images and cuts
a spectrogram into 16 pieces; this one is small, trained from nothing, and takes any length from about 2 s up.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..engine.audio import AudioError
from ..engine.checkpoint import CheckpointError, assign, save_network
from ..engine.config_json import from_json, to_json
from .labels import QUADRANTS, Labelled, LabelledCrops, identity, names, read_quadrants, split
from .mel import MAX_SEMITONES, MelConfig, audio_files, log_mel, mel_centres, read_mono
from .prior import parameter_groups
from .run_folder import record, write_json
from .trainer import Budget, Progress, train


@dataclass(frozen=True)
class ValenceConfig:
    """Sizes; the defaults are the demo's. `crop_seconds` is what the network hears at once, on an axis of `octave_bins`
    bins per octave from `lowest` Hz up; below that, mel bands are too wide to tell notes apart."""

    mel: MelConfig = field(default_factory=lambda: MelConfig(n_fft=4096, hop=2048))
    octave_bins: int = 24
    lowest: float = 150.0
    stem: int = 8
    channels: tuple[int, ...] = (16, 32, 64)
    expansion: int = 3
    layers: int = 2
    heads: int = 4
    dropout: float = 0.2
    crop_seconds: float = 6.0

    @property
    def crop_samples(self) -> int:
        return self.mel.samples(self.mel.frames(self.crop_seconds))


PRESETS = {
    "demo": ValenceConfig(),
    "tiny": ValenceConfig(MelConfig(8000, 512, 256, 32, 50.0, 2800.0), 8, 150.0, 8, (12, 16), 2, 1, 2, 0.0, 2.0),
}


@dataclass(frozen=True)
class ValenceTraining:
    """What a classifier is trained with, beside its budget. Crops are transposed by up to `semitones` either way: the
    key says nothing of the mood, and few songs are in each."""

    batch: int = 16
    weight_decay: float = 0.05
    label_smoothing: float = 0.05
    semitones: int = 5
    held_out: float = 0.2

    def __post_init__(self) -> None:
        if not 0 <= self.semitones <= MAX_SEMITONES or not 0 < self.held_out < 1:
            raise ValueError(f"semitones must be 0 to {MAX_SEMITONES} and held_out between 0 and 1, got {self}")


# In the run's folder: what it was begun with.
MADE_WITH = "made_with.json"
DEMO_BUDGET = Budget(steps=600, learning_rate=3e-3, warm_up=50)


class InvertedResidual(nn.Module):
    """Widen, filter each channel by itself, narrow (Sandler et al., 2018, "MobileNetV2", section 3.3)."""

    def __init__(self, inputs: int, outputs: int, stride: tuple[int, int], expansion: int) -> None:
        super().__init__()
        width = inputs * expansion
        self.is_residual = stride == (1, 1) and inputs == outputs
        self.layers = nn.Sequential(
            nn.Conv2d(inputs, width, 1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU6(),
            nn.Conv2d(width, width, 3, stride, 1, groups=width, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU6(),
            nn.Conv2d(width, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.layers(x) if self.is_residual else self.layers(x)


def _octaves(config: ValenceConfig) -> Tensor:
    """Linear interpolation [bins, mels] from mel bands to equal steps of pitch. Mel bands lie evenly in hertz below
    1 kHz; evenly in pitch, a chord has one shape in every key, which convolutions learn once."""
    centres = mel_centres(config.mel)
    bins = int(config.octave_bins * np.log2(centres[-1] / config.lowest)) + 1
    pitches = config.lowest * 2 ** (np.arange(bins) / config.octave_bins)
    return torch.from_numpy(np.stack([np.interp(pitches, centres, row) for row in np.eye(len(centres))], 1)).float()


class ValenceNet(nn.Module):
    """Log-mel spectrograms [B, mels, frames] in dB -> logits [B, 4] in the order of `QUADRANTS`."""

    octaves: Tensor

    def __init__(self, config: ValenceConfig) -> None:
        super().__init__()
        self.config = config
        self.register_buffer("octaves", _octaves(config), persistent=False)
        self.stem = nn.Sequential(
            nn.Conv2d(1, config.stem, 3, (1, 2), 1, bias=False), nn.BatchNorm2d(config.stem), nn.ReLU6()
        )
        blocks, last = [], len(config.channels) - 1
        for stage, (inputs, outputs) in enumerate(zip((config.stem, *config.channels), config.channels, strict=False)):
            blocks.append(InvertedResidual(inputs, outputs, (2, 1 if stage == last else 2), config.expansion))
            blocks.append(InvertedResidual(outputs, outputs, (1, 1), config.expansion))
        self.blocks = nn.Sequential(*blocks)
        width = config.channels[-1]
        self.join = nn.Linear(2 * width, width)
        layer = nn.TransformerEncoderLayer(
            width, config.heads, 2 * width, config.dropout, "gelu", batch_first=True, norm_first=True
        )
        self.attention = nn.TransformerEncoder(layer, config.layers, enable_nested_tensor=False)
        self.classifier = nn.Sequential(nn.LayerNorm(width), nn.Dropout(config.dropout), nn.Linear(width, 4))

    def forward(self, spectrogram: Tensor) -> Tensor:
        # About -2 to 2. A fixed scale: loudness is part of the mood.
        x = self.stem(self.octaves @ spectrogram[:, None] / 20 + 2)
        # In this layout the blocks take three quarters of the time on a CPU.
        x = self.blocks(x.contiguous(memory_format=torch.channels_last))
        # Over the bands [B, C, bands, T] -> [B, T, 2 C]: the same chord in another key is the same feature.
        x = self.join(torch.cat([x.mean(2), x.amax(2)], 1).transpose(1, 2))
        # No positions: what is near in time the convolutions have seen, and any length is taken.
        return self.classifier(self.attention(x).mean(1))


@torch.no_grad()
def song_probabilities(net: ValenceNet, source: str | Path | Sequence[str | Path], crops: int = 4) -> Tensor:
    """Class probabilities [files, 4] of a folder's audio or a list of files: the mean over crops spread over each file.
    A file shorter than a crop is heard whole.

    Raises:
        AudioError: a file cannot be read, or is shorter than a third of a crop.
    """
    config, device, was_training = net.config, next(net.parameters()).device, net.training
    net.eval()
    rows = []
    for path in audio_files(source):
        samples = read_mono(path, config.mel)
        if 3 * len(samples) < config.crop_samples:
            raise AudioError(f"{path}: {len(samples) / config.mel.sample_rate:.1f} s are too short to tell the mood")
        starts = np.linspace(0, max(0, len(samples) - config.crop_samples), crops).astype(int)
        batch = torch.stack([samples[start : start + config.crop_samples] for start in starts])
        rows.append(net(log_mel(batch.to(device), config.mel)).softmax(1).mean(0).cpu())
    net.train(was_training)
    return torch.stack(rows)


def scores(net: ValenceNet, source: str | Path | Sequence[str | Path]) -> dict[str, float]:
    """The mean class probabilities of a folder of samples, or a list of files: a row of the paper's Table 2."""
    return dict(zip(QUADRANTS, song_probabilities(net, source).mean(0).tolist(), strict=True))


def auc(probabilities: Tensor, quadrants: Sequence[int]) -> dict[str, float]:
    """Areas under the precision-recall and the ROC curve of probabilities [N, 4], macro-averaged, each class against
    the rest, and the accuracy. Needs scikit-learn, of the `eval` extra.

    Raises:
        ValueError: a class has no song, so that its curves do not exist, or scikit-learn is missing.
    """
    missing = [name for index, name in enumerate(QUADRANTS) if index not in quadrants]
    if missing:
        raise ValueError(f"no held-out song is {' or '.join(missing)}: its PR and ROC curves do not exist")
    if importlib.util.find_spec("sklearn") is None:
        raise ValueError("PR-AUC and ROC-AUC need scikit-learn: pip install 'fastjukebox[eval]'")
    from sklearn.metrics import average_precision_score, roc_auc_score

    truth = F.one_hot(torch.tensor(quadrants), len(QUADRANTS)).numpy()
    values = probabilities.numpy()
    return {
        "pr_auc": float(average_precision_score(truth, values, average="macro")),
        "roc_auc": float(roc_auc_score(truth, values, average="macro")),
        "accuracy": float((probabilities.argmax(1) == torch.tensor(quadrants)).double().mean()),
    }


def report(net: ValenceNet, held_out: Sequence[Labelled]) -> dict[str, float]:
    """`auc` on songs that the network was not trained on. Raises what `auc` and `song_probabilities` raise."""
    return auc(song_probabilities(net, [song.path for song in held_out]), [song.quadrant for song in held_out])


def train_valence(
    folder: Path,
    songs: Sequence[Labelled],
    config: ValenceConfig,
    budget: Budget,
    settings: ValenceTraining,
    seed: int,
    device: torch.device | str = "cpu",
    also: Collection[Path] = (),
) -> tuple[ValenceNet, Progress, list[Labelled]]:
    """The network, what it took, and the held-out songs for `report`, those of `also` among them; goes on with the run
    in `folder`.

    Raises:
        ValueError: too few songs (`split`), one that is too short, or the run was begun with other songs or settings.
    """
    training, held_out = split(songs, settings.held_out, seed, also)
    made_with = {"seed": seed, "training": identity(training), "held_out": identity(held_out)}
    limits = {"steps": budget.steps, "learning_rate": budget.learning_rate}
    record(folder / MADE_WITH, {**to_json(config), **asdict(settings), **limits, **made_with})
    crops = LabelledCrops(training, config.mel, config.crop_samples, seed)
    torch.manual_seed(seed)
    net = ValenceNet(config).to(device)
    optimizer = torch.optim.AdamW(parameter_groups(net.parameters(), settings.weight_decay), lr=budget.learning_rate)
    recent: list[float] = []

    def step_loss(step: int) -> Tensor:
        audio, quadrants = crops.batch(step, settings.batch)
        # Dropout too depends on (seed, step) alone.
        torch.manual_seed(seed + step)
        moved = np.random.default_rng([seed, step, 2]).integers(-settings.semitones, settings.semitones + 1, len(audio))
        logits = net(log_mel(audio.to(device), config.mel, moved.tolist()))
        loss = F.cross_entropy(logits, quadrants.to(device), label_smoothing=settings.label_smoothing)
        recent.append(float(loss.detach()))
        return loss

    def evaluate() -> dict[str, float]:
        found = song_probabilities(net, [song.path for song in held_out], crops=1).argmax(1).tolist()
        accuracy = float(np.mean([a == b.quadrant for a, b in zip(found, held_out, strict=True)]))
        mean_loss = sum(recent) / max(1, len(recent))
        recent.clear()
        return {"mean_loss": mean_loss, "held_out_accuracy": accuracy}

    net.train()
    progress = train(folder, budget, net, optimizer, step_loss, evaluate=evaluate)
    return net.eval(), progress, held_out


def save(net: ValenceNet, folder: Path, seed: int | None = None, held_out: Sequence[str] | None = None) -> None:
    """Write valence.safetensors and, last, valence.json to `folder`, which is made if need be: the network's config,
    the seed, and the songs that were held out, as `labels.names` has them."""
    folder.mkdir(parents=True, exist_ok=True)
    save_network(folder / "valence.safetensors", net, torch.float32)
    write_json(folder / "valence.json", {**to_json(net.config), "seed": seed, "held_out": held_out})


def held_out_songs(folder: Path, source: str | Path) -> list[Labelled]:
    """The songs of a table (`read_quadrants`) that the network in `folder` was not trained on.

    Raises:
        ValueError: the network does not say which, or one of them is not in the table.
    """
    held_out = json.loads((folder / "valence.json").read_text()).get("held_out")
    if held_out is None:
        raise ValueError(f"{folder / 'valence.json'} does not say which songs were held out: train it again")
    found = [song for song in read_quadrants(source) if names([song], source)[0] in held_out]
    if len(found) != len(held_out):
        raise ValueError(f"{source} has {len(found)} of the {len(held_out)} songs that {folder} holds out")
    return found


def load(folder: Path, device: torch.device | str = "cpu") -> ValenceNet:
    """The network that `save` wrote. Raises CheckpointError, which names the file."""
    path = folder / "valence.json"
    try:
        values = json.loads(path.read_text())
        fields = {name: value for name, value in values.items() if name not in ("seed", "held_out")}
        net = ValenceNet(from_json(ValenceConfig, fields))
        path = folder / "valence.safetensors"
        assign(net, load_file(path).items(), path)
    except CheckpointError:
        raise
    except (ValueError, AttributeError, OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from None
    return net.to(device).eval()
