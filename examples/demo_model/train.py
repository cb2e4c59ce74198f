"""Trains the demo model, writes its folder and scores the held-out set; no download is needed.

Run `python examples/demo_model/train.py --help`.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import tokenizers
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from data import MAX_SLOTS, Writer
from evaluate import FOLDER, evaluate, show
from held_out import held_out_set
from muon import Muon
from tokens import IGNORED, TEMPLATE, Encoded, Encoder, build_tokenizer
from words import TRAINING_WORDS

MODEL = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 8192,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1_000_000.0},
}
VOCAB_SIZE = 1728  # that of the tokenizer, rounded up to a multiple of 64
BATCHES_PER_POOL = 8  # drawn together and sorted by length, so that little is padded
FIRST_STEPS, EARLY_STEPS = 250, 500  # ends of the parts with short queries and items


@dataclass(frozen=True)
class Settings:
    """How to train.

    Attributes:
        steps: optimizer steps.
        batch_size: pairs of query and item a step.
        seed: of data and weights.
        matrix_lr: step size of Muon, for the matrices.
        other_lr: step size of AdamW, for embeddings, norms and probes.
        label_weight: of the loss on the label, beside 1 for each auxiliary loss.
        decay_share: share of the steps in which step sizes fall.
    """

    steps: int
    batch_size: int
    seed: int
    matrix_lr: float = 5e-3
    other_lr: float = 3e-3
    label_weight: float = 2.0
    decay_share: float = 0.5

    def pace(self, step: int) -> float:
        """Share of the full step size: up for 50 steps, later down to a fiftieth."""
        left = (1 - step / self.steps) / self.decay_share
        return min((step + 1) / 50, 1.0, max(left, 0.02))

    def aux_weight(self, step: int) -> float:
        """Weight of the auxiliary losses: 1, in the last third falling to a tenth."""
        return min(1.0, max(3 * (1 - step / self.steps), 0.1))


class Batch(NamedTuple):
    """Pairs side by side, padded on the right. Torch tensors.

    Attributes:
        ids: int64 [B, T]; padding is token 0, which no row's last token sees.
        prefix: int64 [B, T], as in `Encoded`.
        ended: int64 [B, T], as in `Encoded`.
        present: float32 [B, MAX_SLOTS], as in `Encoded`.
        target: float32 [B], P(yes) to learn.
        last: int64 [B], the place of each row's last token.
    """

    ids: Any
    prefix: Any
    ended: Any
    present: Any
    target: Any
    last: Any


def collate(rows: Sequence[Encoded]) -> Batch:
    """Rows as one batch."""
    import torch

    length = max(len(row.ids) for row in rows)

    def padded(name: str, filler: int) -> Any:
        arrays = (getattr(row, name) for row in rows)
        wide = [np.pad(a, (0, length - len(a)), constant_values=filler) for a in arrays]
        return torch.from_numpy(np.stack(wide))

    return Batch(
        ids=padded("ids", 0),
        prefix=padded("prefix", IGNORED),
        ended=padded("ended", IGNORED),
        present=torch.from_numpy(np.stack([row.present for row in rows])),
        target=torch.tensor([row.target for row in rows]),
        last=torch.tensor([len(row.ids) - 1 for row in rows]),
    )


def draw_size(rng: random.Random, step: int) -> tuple[int, int]:
    """Content words of a query and other words of its item: few at first."""
    if step < FIRST_STEPS:
        return rng.choice((1, 1, 2)), rng.choice((0, 1, 2))
    if step < EARLY_STEPS:
        return rng.choice((1, 2, 2, 3)), rng.randint(0, 3)
    num_words = rng.choices(range(1, MAX_SLOTS + 1), (22, 30, 25, 17, 3, 3))[0]
    return num_words, rng.randint(0, 5) if rng.random() < 0.95 else rng.randint(6, 16)


def batches(settings: Settings, tokenizer: tokenizers.Tokenizer) -> Iterator[Batch]:
    """The training data, fresh in every step."""
    rng = random.Random(settings.seed)
    writer, encoder = Writer(rng, TRAINING_WORDS), Encoder(tokenizer)
    size = settings.batch_size
    for step in range(0, settings.steps, BATCHES_PER_POOL):
        pairs = (writer.pair(*draw_size(rng, step)) for _ in range(size * BATCHES_PER_POOL))
        rows = sorted(map(encoder.encode, pairs), key=lambda row: len(row.ids))
        starts = list(range(0, len(rows), size))
        rng.shuffle(starts)
        for start in starts[: settings.steps - step]:
            yield collate(rows[start : start + size])


def new_model(seed: int) -> tuple[Any, Any]:
    """A random Qwen3 of `MODEL`'s shape, and the probes of the auxiliary losses."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    torch.manual_seed(seed)
    config = Qwen3Config(vocab_size=VOCAB_SIZE, tie_word_embeddings=True, use_cache=False, **MODEL)
    hidden = config.hidden_size
    sizes = {"prefix": MAX_SLOTS, "ended": MAX_SLOTS + 1, "present": MAX_SLOTS}
    probes = {name: torch.nn.Linear(hidden, size) for name, size in sizes.items()}
    return Qwen3ForCausalLM(config), torch.nn.ModuleDict(probes)


def losses(model: Any, probes: Any, batch: Batch, labels: Sequence[int]) -> tuple[Any, Any]:
    """The loss on the label (its least value is 0), and the sum of the auxiliary losses.

    The auxiliary losses ask at each token what a reader would know there: which words of the query
    start like the item's word so far, which one the word just ended is, and, at the end, which the
    item has.
    """
    import torch
    from torch.nn import functional

    hidden = model.model(input_ids=batch.ids).last_hidden_state
    final = hidden[torch.arange(len(hidden)), batch.last]
    logprobs = model.lm_head(final).log_softmax(-1)
    target = torch.stack([batch.target, 1 - batch.target], 1)
    label = (target * (target.log() - logprobs[:, labels])).sum(1).mean()

    at = batch.prefix != IGNORED
    bits = (batch.prefix[at][:, None] >> torch.arange(MAX_SLOTS)) & 1
    ended = batch.ended != IGNORED
    asked = batch.present != IGNORED
    binary = functional.binary_cross_entropy_with_logits
    auxiliary = (
        binary(probes["prefix"](hidden[at]), bits.float())
        + functional.cross_entropy(probes["ended"](hidden[ended]), batch.ended[ended])
        + binary(probes["present"](final)[asked], batch.present[asked])
    )
    return label, auxiliary


def train(settings: Settings, tokenizer: tokenizers.Tokenizer, console: Console) -> Any:
    """A trained model, in float32."""
    import torch

    model, probes = new_model(settings.seed)
    labels = [tokenizer.encode(label).ids[0] for label in TEMPLATE["labels"]]
    named = list(model.named_parameters())
    matrices = {name for name, p in named if p.ndim == 2 and "embed" not in name}
    muon = Muon([p for name, p in named if name in matrices], settings.matrix_lr)
    others = [p for name, p in named if name not in matrices] + list(probes.parameters())
    adamw = torch.optim.AdamW(others, lr=settings.other_lr, betas=(0.9, 0.98), weight_decay=0.0)
    columns = (
        TextColumn("training"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
    )
    recent = math.nan
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=settings.steps, loss=recent)
        for step, batch in enumerate(batches(settings, tokenizer)):
            label, auxiliary = losses(model, probes, batch, labels)
            weighted = settings.label_weight * label + settings.aux_weight(step) * auxiliary
            weighted.backward()
            torch.nn.utils.clip_grad_norm_(others, 1.0)
            muon.lr = settings.matrix_lr * settings.pace(step)
            adamw.param_groups[0]["lr"] = settings.other_lr * settings.pace(step)
            muon.step()
            adamw.step()
            adamw.zero_grad()
            recent = label.item() if math.isnan(recent) else 0.98 * recent + 0.02 * label.item()
            progress.update(task, advance=1, loss=recent)
            if (step + 1) % 250 == 0 and not console.is_terminal:
                console.print(f"step {step + 1} of {settings.steps}: loss {recent:.4f}")
    return model


def write_folder(folder: Path, model: Any, tokenizer: tokenizers.Tokenizer) -> None:
    """Writes what a model folder needs, weights in bfloat16."""
    import torch
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        name: tensor.to(torch.bfloat16).contiguous()
        for name, tensor in model.state_dict().items()
        if name != "lm_head.weight"  # tied to the embeddings
    }
    weights = folder / "model.safetensors"
    save_file(tensors, weights, metadata={"format": "pt"})
    weights.chmod(0o644)  # the library lets the owner alone read it
    config = {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "vocab_size": VOCAB_SIZE,
        "tie_word_embeddings": True,
        "torch_dtype": "bfloat16",
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "attention_bias": False,
        "use_sliding_window": False,
        **MODEL,
        "eos_token_id": tokenizer.token_to_id("<|endoftext|>"),
    }
    tokenizer.save(str(folder / "tokenizer.json"))
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": MODEL["max_position_embeddings"],
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
        "clean_up_tokenization_spaces": False,
    }
    for name, content in (
        ("config.json", config),
        ("tokenizer_config.json", tokenizer_config),
        ("prompt_template.json", TEMPLATE),
    ):
        (folder / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def main() -> None:
    """Runs the command."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder to write")
    parser.add_argument("--steps", type=int, default=2400, help="optimizer steps (2400)")
    parser.add_argument("--batch-size", type=int, default=128, help="pairs a step (128)")
    parser.add_argument("--seed", type=int, default=0, help="seed of data and weights (0)")
    parser.add_argument(
        "--threads", type=int, default=2, help="threads for torch; 1 where other programs run (2)"
    )
    options = parser.parse_args()
    console = Console()
    torch.set_num_threads(options.threads)
    tokenizer = build_tokenizer()
    start = time.monotonic()
    model = train(Settings(options.steps, options.batch_size, options.seed), tokenizer, console)
    console.print(f"trained in {(time.monotonic() - start) / 60:.1f} minutes")
    write_folder(options.output, model, tokenizer)
    show(evaluate(options.output, held_out_set()), console)


if __name__ == "__main__":
    main()
