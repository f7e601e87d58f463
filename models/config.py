"""What a study is made of, as frozen values; every preset is a function that returns one.

A study holds one text, one order of its tokens, one probe set, and several runs. Runs differ in
their arm (the architecture, `ModelConfig`) and their seed (initialization and router noise only).

References
----------
.. [1] Fedus et al. (2022), Switch Transformers, arXiv:2101.03961.
.. [2] Roller et al. (2021), Hash Layers, arXiv:2106.04426.
.. [3] Jelassi et al. (2024), Repeat After Me (Hard-ALiBi), arXiv:2402.01032.
"""

import dataclasses
import hashlib
import json
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Router = Literal["switch", "ungated", "hash"]
Windows = Literal["powers", "half"]
Precision = Literal["auto", "float32", "bfloat16"]


@dataclass(frozen=True)
class ModelConfig:
    """Architecture of one arm.

    Attributes
    ----------
    d_model, n_layers, n_heads, n_ctx, d_vocab : sizes; the MLP is 4 x `d_model` wide.
    windows : Hard-ALiBi schedule. "powers": head h sees the last 2**h keys, in every head [the
        reference study]; "half": head h of the first half sees h + 1, the others see all [3]_.
    router : None for a dense model. "switch": gated by the router's probability [1]_;
        "ungated": the choice is the router's, the output is not scaled; "hash": a fixed random
        map from token id to expert [2]_.
    router_bias : whether the router has a bias; the reference study's had one.
    moe_layers : blocks that hold experts instead of one MLP.
    n_experts, top_k : experts a layer, and how many of them a token uses.
    capacity_factor : None keeps every token; a number drops, in training only, what exceeds that
        multiple of an even share of tokens per expert.
    """

    d_model: int
    n_layers: int
    n_heads: int
    n_ctx: int
    d_vocab: int
    windows: Windows = "powers"
    router: Router | None = None
    router_bias: bool = False
    moe_layers: tuple[int, ...] = ()
    n_experts: int = 0
    top_k: int = 0
    capacity_factor: float | None = None

    def __post_init__(self) -> None:
        for name in ("d_model", "n_layers", "n_heads", "n_ctx", "d_vocab"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; use 1 or more")
        require(
            self.d_model % self.n_heads == 0,
            f"d_model {self.d_model} is not a multiple of n_heads {self.n_heads}; change one",
        )
        capacity = self.capacity_factor
        require(
            capacity is None or 0 < capacity < math.inf,
            f"capacity_factor is {capacity}; use a number above 0, or none to keep every token",
        )
        if self.router is None:
            require(
                not self.moe_layers and not self.n_experts and not self.top_k,
                "a dense model (router None) has no experts; set router, or leave moe_layers, "
                "n_experts and top_k unset",
            )
            return
        require(
            bool(self.moe_layers) and all(0 <= i < self.n_layers for i in self.moe_layers),
            f"moe_layers {self.moe_layers} must name blocks from 0 to {self.n_layers - 1}",
        )
        require(
            1 <= self.top_k <= self.n_experts,
            f"top_k {self.top_k} must lie between 1 and n_experts {self.n_experts}",
        )
        require(
            self.router != "hash" or self.top_k == 1,
            f"a hash router sends a token to one expert; top_k is {self.top_k}, use 1",
        )
        require(
            self.d_model % 8 == 0,
            f"d_model {self.d_model} of a model with experts must be a multiple of 8: grouped "
            "matrix products need rows of whole 16-byte blocks",
        )

    @property
    def d_head(self) -> int:
        return self.d_model // self.n_heads

    @property
    def d_mlp(self) -> int:
        return 4 * self.d_model


@dataclass(frozen=True)
class DataConfig:
    """The text, its tokens, and the held-out probe set.

    Attributes
    ----------
    source : "builtin" (State of the Union messages and, with the extra `books`, 18 books),
        "folder" (`.txt` files, sub-folder = domain) or "dataset" (a Hugging Face data set).
    path : the folder, or the name or saved folder of the data set.
    split, text_column, domain_column : for a data set.
    d_vocab : size of the byte-level BPE vocabulary.
    n_ctx : tokens a training or probe sequence predicts.
    order_seed : fixes the order of the training tokens and the choice of probe documents.
    probe_documents, sequences_per_document : size of the probe set.
    max_epochs : most passes over the training tokens that training may make.
    """

    source: Literal["builtin", "folder", "dataset"] = "builtin"
    path: str | None = None
    split: str = "train"
    text_column: str = "text"
    domain_column: str | None = None
    d_vocab: int = 2048
    n_ctx: int = 128
    order_seed: int = 0
    probe_documents: int = 80
    sequences_per_document: int = 2
    max_epochs: int = 1

    def __post_init__(self) -> None:
        require(
            257 <= self.d_vocab <= 65536,
            f"d_vocab {self.d_vocab} must lie between 257 (256 bytes and the separator) and "
            "65536 (tokens are stored as uint16)",
        )
        for name in ("n_ctx", "probe_documents", "sequences_per_document", "max_epochs"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; use 1 or more")
        require(self.order_seed >= 0, f"order_seed is {self.order_seed}; use 0 or more")
        require(
            (self.source == "builtin") == (self.path is None),
            f"source {self.source!r} with path {self.path!r}: a folder or data set needs "
            "data.path, the built-in text takes none",
        )


@dataclass(frozen=True)
class TrainConfig:
    """Optimization and observation.

    Attributes
    ----------
    n_steps, batch_size : optimizer steps, and sequences in each.
    learning_rate, warmup_steps, final_lr_fraction : linear warm-up to `learning_rate`, then
        linear decay to that fraction of it at the last step.
    weight_decay, gradient_clip, balance_weight : AdamW's decay, the largest gradient norm, the
        weight of the balancing loss.
    precision : of training; "auto" is bfloat16 where the hardware multiplies it natively and
        float32 elsewhere. Observation is always float32.
    threads : of one run on a CPU; None is all. One lets runs train side by side, and makes what
        they compute independent of the number of cores.
    observe_every : observe at steps 0, 1, 2, 4, ... 512, at multiples of this, and at the last.
    activation_sites, activation_positions : residual-stream sites to store, and at how many
        positions of every probe sequence; 0 for none.
    prediction_positions : positions of every probe sequence at which to store the predicted
        distribution over the vocabulary; 0 for none.
    """

    n_steps: int
    batch_size: int = 16
    learning_rate: float = 2e-3
    warmup_steps: int = 50
    final_lr_fraction: float = 0.1
    weight_decay: float = 0.0
    gradient_clip: float = 0.9
    balance_weight: float = 0.0625
    precision: Precision = "auto"
    threads: int | None = None
    observe_every: int = 50
    activation_sites: tuple[str, ...] = ("resid_mid", "resid_post")
    activation_positions: int = 16
    prediction_positions: int = 4

    def __post_init__(self) -> None:
        for name in ("n_steps", "batch_size", "observe_every"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; use 1 or more")
        require(
            self.threads is None or self.threads >= 1, f"threads is {self.threads}; use 1 or more"
        )
        for name in ("learning_rate", "gradient_clip"):
            value = getattr(self, name)
            require(0 < value < math.inf, f"{name} is {value}; use a number above 0")
        for name in ("warmup_steps", "final_lr_fraction", "weight_decay", "balance_weight",
                     "activation_positions", "prediction_positions"):  # fmt: skip
            value = getattr(self, name)
            require(0 <= value < math.inf, f"{name} is {value}; use 0 or a number above")

    @property
    def n_sequences(self) -> int:
        """Sequences that training asks of the text."""
        return self.n_steps * self.batch_size

    @property
    def observation_steps(self) -> tuple[int, ...]:
        """Steps at which the probe set is observed, ascending, from 0 to `n_steps`."""
        powers = {2**i for i in range(10)}
        regular = set(range(0, self.n_steps + 1, self.observe_every))
        return tuple(s for s in sorted({0, self.n_steps} | powers | regular) if s <= self.n_steps)


@dataclass(frozen=True)
class RunConfig:
    """One run: an arm's architecture and a seed for its initialization and router noise."""

    arm: str
    seed: int
    model: ModelConfig

    @property
    def name(self) -> str:
        return f"{self.arm}-seed{self.seed}"

    @property
    def random_seed(self) -> int:
        """What all randomness of the run starts from, a hash of arm and seed.

        Seed 0 of one arm must share no random number with seed 0 of another: two arms of one width
        would start from the same embedding, and their losses agree for that reason.
        """
        digest = hashlib.sha256(f"{self.arm} {self.seed}".encode()).digest()
        return int.from_bytes(digest[:7], "big")


@dataclass(frozen=True)
class StudyConfig:
    """A cohort of runs on the same tokens in the same order."""

    name: str
    data: DataConfig
    train: TrainConfig
    runs: tuple[RunConfig, ...] = ()

    def __post_init__(self) -> None:
        check_name(self.name, what="study")
        names = [check_name(run.name, what="run") for run in self.runs]
        require(len(set(names)) == len(names), f"two runs share a name: {sorted(names)}")
        for run in self.runs:
            require(
                run.model.d_vocab == self.data.d_vocab and run.model.n_ctx == self.data.n_ctx,
                f"run {run.name} has d_vocab {run.model.d_vocab} and n_ctx {run.model.n_ctx}, its "
                f"data {self.data.d_vocab} and {self.data.n_ctx}; they must agree",
            )
        for name in ("activation_positions", "prediction_positions"):
            wanted = getattr(self.train, name)
            require(
                wanted <= self.data.n_ctx,
                f"train.{name} is {wanted}, but a sequence has {self.data.n_ctx} positions "
                "(data.n_ctx); use that many or fewer",
            )


def check_name(name: str, *, what: str) -> str:
    """Return `name` if it can safely name a file on any system.

    Raises
    ------
    ValueError
        For separators, a leading dot, an empty name, or more than 100 characters.
    """
    require(
        re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", name) is not None and ".." not in name,
        f"{what} name {name!r} cannot be used: take letters, digits, '-', '_' and single '.', "
        "starting with a letter or digit, at most 100",
    )
    return name


def quick() -> StudyConfig:
    """Five small runs on the built-in text: a first look, in minutes on two cores."""
    return _cohort(
        "quick",
        DataConfig(),
        TrainConfig(n_steps=400, threads=1),
        n_layers=4,
        n_heads=8,
        arms={"dense": (112, (0, 1)), "dense_120": (120, (0,)), "switch": (112, (0, 1))},
    )


def seeds() -> StudyConfig:
    """Four seeds of each arm, and two of another width: what seed noise is measured on."""
    four = (0, 1, 2, 3)
    return _cohort(
        "seeds",
        quick().data,
        quick().train,
        n_layers=4,
        n_heads=8,
        arms={
            "dense": (112, four),
            "dense_120": (120, (0, 1)),
            "switch": (112, four),
            "ungated": (120, four),
            "hash": (80, four),
        },
    )


def laptop() -> StudyConfig:
    """One pass over the built-in text with larger models: a night on a laptop."""
    return _cohort(
        "laptop",
        DataConfig(n_ctx=256, sequences_per_document=4),
        TrainConfig(n_steps=1300, learning_rate=1e-3, warmup_steps=130, observe_every=100),
        n_layers=6,
        n_heads=9,
        arms={"dense": (234, (0, 1, 2)), "dense_252": (252, (0,)), "switch": (216, (0, 1, 2))},
    )


def reference() -> StudyConfig:
    """The reference study: 135M dense, 211M MoE, 1.2B tokens; give it a text with data.path."""
    data = DataConfig(source="folder", path="books", n_ctx=840, probe_documents=400)
    train = TrainConfig(
        n_steps=89_286,
        learning_rate=1e-4,
        warmup_steps=2000,
        observe_every=2000,
    )
    arms = {
        "dense": reference_dense(),
        "ungated": reference_moe(),
        "switch": reference_moe_switch(),
    }
    wider = dataclasses.replace(reference_dense(), d_model=1122)
    runs = [RunConfig(arm, seed, model) for arm, model in arms.items() for seed in (0, 1)]
    return StudyConfig("reference", data, train, (*runs, RunConfig("dense_1122", 0, wider)))


def reference_dense() -> ModelConfig:
    """The dense model of the reference study: 135,338,348 parameters."""
    return ModelConfig(d_model=1100, n_layers=9, n_heads=11, n_ctx=840, d_vocab=2048)


def reference_moe() -> ModelConfig:
    """The MoE of the reference study as its author's notebook has it: 211,742,488 parameters."""
    return ModelConfig(
        d_model=792, n_layers=9, n_heads=11, n_ctx=840, d_vocab=2048,
        router="ungated", router_bias=True, moe_layers=(1, 3, 5, 7), n_experts=8, top_k=1,
    )  # fmt: skip


def reference_moe_switch() -> ModelConfig:
    """The same with the bias-free, gated Switch router: 211,742,456 parameters."""
    return dataclasses.replace(reference_moe(), router="switch", router_bias=False)


PRESETS: dict[str, Callable[[], StudyConfig]] = {
    preset.__name__: preset for preset in (quick, seeds, laptop, reference)
}


def _cohort(
    name: str,
    data: DataConfig,
    train: TrainConfig,
    *,
    n_layers: int,
    n_heads: int,
    arms: dict[str, tuple[int, tuple[int, ...]]],
) -> StudyConfig:
    """A study whose arms are {arm: (width, seeds)}; "dense..." or the name of a router."""
    runs = []
    for arm, (d_model, arm_seeds) in arms.items():
        model = ModelConfig(d_model, n_layers, n_heads, data.n_ctx, data.d_vocab)
        if not arm.startswith("dense"):
            model = dataclasses.replace(
                model,
                router=arm,  # type: ignore[arg-type]
                router_bias=arm == "ungated",
                moe_layers=tuple(range(1, n_layers, 2)),
                n_experts=8,
                top_k=1,
            )
        runs += [RunConfig(arm, seed, model) for seed in arm_seeds]
    return StudyConfig(name, data, train, tuple(runs))


def as_json(cfg: StudyConfig | RunConfig | ModelConfig) -> str:
    """The configuration as JSON text with sorted keys: equal configurations, equal text."""
    return json.dumps(dataclasses.asdict(cfg), sort_keys=True, indent=1)


def require(holds: bool, message: str) -> None:
    if not holds:
        raise ValueError(message)
