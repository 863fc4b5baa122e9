"""Small models of three families, one for each shipped circuit task.

Words are tokens here: the tasks' own generators write the training text for this vocabulary. Trained models are kept in
the cache and read back by the next run.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from cohomcli.data.pairs import TokenPair, encode_pairs
from cohomcli.data.tasks import (
    CENTURIES,
    EVENTS,
    IOI_TEMPLATES,
    NAMES,
    PLACES,
    THINGS,
    YEAR_TEMPLATE,
    task_pairs,
)
from cohomcli.runs.cache import cache_root

WORDS = (
    "apple", "river", "stone", "cloud", "paper", "glass", "wheel", "bread", "chair", "light", "horse", "tiger",
    "olive", "pearl", "sugar", "tower", "spoon", "knife", "lemon", "candle", "basket", "window", "pencil", "mirror",
    "button", "carpet", "copper", "cotton", "desert", "engine", "fabric", "forest", "garlic", "hammer", "island",
    "jacket", "kettle", "ladder", "magnet", "needle", "orange", "pepper", "pillow", "pocket", "rabbit", "ribbon",
    "saddle", "silver", "spider", "ticket", "tunnel", "turtle", "valley", "velvet", "violin", "walnut", "winter",
    "zebra", "anchor", "barrel",
)  # fmt: skip
PAIRS, IGNORE = {"ioi": 2000, "greater-than": 300}, -100
FAMILIES = ("gpt2", "llama", "gpt_neox")
STEPS = {"ioi": 700, "greater-than": 150, "induction": 700}
MORE_STEPS = {("llama", "induction"): 3000}  # learns it late
BATCH, RATE = 32, 4e-3
LONGEST = 28  # words of an induction row


def word_tokenizer() -> Any:
    """A tokenizer whose tokens are words, marks and pairs of digits."""
    texts = [*IOI_TEMPLATES, YEAR_TEMPLATE, *NAMES, *PLACES, *THINGS, *EVENTS]
    known = [word for text in texts for word in re.findall(r"[A-Za-z]+|[.,]", re.sub(r"\{[^}]*\}", " ", text))]
    numbers = [f"{year:02d}" for year in range(100)]
    return _of_words([*known, *numbers, *(str(c) for c in CENTURIES), *WORDS])


def induction_tokenizer() -> Any:
    """The words that induction is trained on, and no others: what the task's generator is to draw from."""
    return _of_words(["The", *WORDS])


def _of_words(words: list[str]) -> Any:
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    known = dict.fromkeys(["<unk>", "<end>", *words])
    tokenizer = Tokenizer(models.WordLevel({word: at for at, word in enumerate(known)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Split(Regex(r"\d\d|[A-Za-z]+|[.,]"), "isolated")]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="<end>")


def new_model(family: str, vocabulary: int, n_layer: int = 3, width: int = 48) -> Any:
    """A causal model of `family` with random weights: 4 heads, of which Llama shares 2 keys and values."""
    from transformers import CONFIG_MAPPING, AutoModelForCausalLM

    common = {
        "vocab_size": vocabulary, "hidden_size": width, "num_hidden_layers": n_layer, "num_attention_heads": 4,
        "max_position_embeddings": 64, "bos_token_id": None, "eos_token_id": 1, "pad_token_id": None,
        "tie_word_embeddings": True,
    }  # fmt: skip
    extra: dict[str, dict[str, Any]] = {
        "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
        "llama": {"num_key_value_heads": 2, "intermediate_size": 3 * width},
        "gpt_neox": {"intermediate_size": 4 * width, "rotary_pct": 1.0},
        "phi": {"intermediate_size": 4 * width, "partial_rotary_factor": 1.0},
        "opt": {"ffn_dim": 4 * width, "word_embed_proj_dim": width, "dropout": 0.0},
    }
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[family](**common, **extra[family]))
    if family == "gpt2":
        _sinusoids(model.transformer.wpe.weight)
    return model


@torch.no_grad()
def _sinusoids(weight: Tensor) -> None:
    """Let learned positions start as sinusoids (Vaswani et al. 2017): the token before is then a linear map away."""
    place = torch.arange(len(weight))[:, None] / 10000 ** torch.linspace(0, 1, weight.shape[1] // 2)
    weight.copy_(0.1 * torch.cat([place.sin(), place.cos()], dim=1))


@dataclass(frozen=True)
class Rows:
    """Training rows: `ids` and `labels` (n, T), labels -100 where nothing is predicted."""

    ids: Tensor
    labels: Tensor


def rows_of(pairs: list[TokenPair], draw: random.Random, corrupt_share: float, shared: bool) -> Iterator[list[int]]:
    """Prompt and answer of every pair; now and then the corrupt prompt, whose answer is either (`shared`)."""
    for pair in pairs:
        if shared and draw.random() < corrupt_share:
            yield [*pair.corrupt, draw.choice([*pair.answers, *pair.wrong])]
        else:
            yield [*pair.clean, draw.choice(pair.answers)]


class Rounds:
    """Batches of one task; induction words are drawn anew every time."""

    def __init__(self, tokenizer: Any, task: str, seed: int) -> None:
        self.draw = random.Random(seed)
        self.words = [tokenizer.get_vocab()[word] for word in WORDS]
        self.first = tokenizer.get_vocab()["The"]
        self.rows: list[list[list[int]]] = []
        if task in PAIRS:
            pairs = encode_pairs(tokenizer, task_pairs(task, tokenizer, PAIRS[task], 1000 + seed))
            found = list(rows_of(pairs, self.draw, 0.15, task == "ioi"))
            self.rows = [[row for row in found if len(row) == size] for size in sorted({len(row) for row in found})]

    def batch(self, step: int) -> Rows:
        """Rows of one length; of prompts only the answer is to be learnt."""
        if not self.rows:
            return self.induction()
        ids = torch.tensor(self.draw.choices(self.rows[step % len(self.rows)], k=BATCH))
        labels = torch.full_like(ids, IGNORE)
        labels[:, -1] = ids[:, -1]
        return Rows(ids, labels)

    def induction(self) -> Rows:
        """Some words, then others again and again; how many they are, and so where they return, differs by row."""
        ids, labels = [], []
        for _ in range(BATCH):
            size = self.draw.randint(4, 10)
            before = self.draw.randint(0, 4)
            words = self.draw.sample(self.words, before + size)
            again = (words[before:] * LONGEST)[: LONGEST - before]
            ids.append([self.first, *words[:before], *again])
            labels.append([IGNORE] * (before + size + 2) + ids[-1][before + size + 2 :])
        return Rows(torch.tensor(ids), torch.tensor(labels))


def train(model: Any, batches: Any, steps: int) -> float:
    """Train in place with AdamW, warm-up and cosine; returns the mean loss of the last 40 steps."""
    free = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(free, lr=RATE, betas=(0.9, 0.98), weight_decay=0.05)
    turn = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=steps, pct_start=0.05)
    last: list[float] = []
    model.train()
    for step in range(steps):
        rows = batches(step)
        logits = model(input_ids=rows.ids).logits[:, :-1]
        loss = functional.cross_entropy(logits.flatten(0, 1), rows.labels[:, 1:].flatten(), ignore_index=IGNORE)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(free, 1.0)
        optimizer.step()
        turn.step()
        last = [*last[-39:], float(loss.detach())]
        if (step + 1) % 100 == 0:
            print(f"  step {step + 1}: loss {sum(last) / len(last):.3f}", flush=True)
    model.eval()
    return sum(last) / len(last)


def folder_of(name: str) -> Path:
    """Where a trained model is kept."""
    return cache_root() / "circuit-models" / name


def trained(family: str, task: str, seed: int = 0) -> Path:
    """The folder of a model of `family` trained on `task`; trained now if there is none."""
    steps = MORE_STEPS.get((family, task), STEPS[task])
    folder = folder_of(f"{family}-{task}-{seed}-{steps}")
    if not (folder / "config.json").exists():
        tokenizer = word_tokenizer()
        torch.manual_seed(seed)
        _make(new_model(family, len(tokenizer)), Rounds(tokenizer, task, seed), steps, tokenizer, folder)
    return folder


def _make(model: Any, rounds: Rounds, steps: int, tokenizer: Any, folder: Path) -> None:
    loss = train(model, rounds.batch, steps)
    print(f"trained {folder.name}: loss of the last steps {loss:.3f}", flush=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
