"""Search: the space of architectures, the supernet that scores them, how they are proposed and which are kept."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from stages.schema.models import DistillConfig
from stages.schema.quantizing import QuantizeConfig


class LatencySource(Enum):
    """Where an architecture's latency comes from: predicted for the device, measured on this machine's
    ONNX Runtime, or nowhere: then bytes alone count."""

    predicted = "predicted"
    host = "host"
    none = "none"


class Sampler(Enum):
    """Who proposes architectures: NSGA-II (doi:10.1109/4235.996017), the tree-structured Parzen estimator
    (doi:10.5555/2986459.2986743), chance, or nobody: prune cuts by importance alone. off: the model stays as it is."""

    nsga2 = "nsga2"
    tpe = "tpe"
    random = "random"
    prune = "prune"
    off = "off"


class Score(Enum):
    """What a search makes large: the share of questions answered right, or the negative loss."""

    accuracy = "accuracy"
    loss = "loss"


@dataclass
class SpaceConfig:
    """What each dimension can shrink to, as shares of the loaded model's; sizes become the nearest multiple of
    `multiple` where they are widths of the decoder. What does not come out whole is left out.

    decoder_depth, decoder_ffn: layers, and their feed-forward width. kv_heads, group_heads: key-value heads, and query
    heads that share one. head_rank: rank of the output head; 1 is a whole one. tower_depth: blocks of each stage;
    tower_width, tower_ffn: channels, and hidden channels of the feed-forward parts. resolution: side of the image;
    visual_tokens: 0.5 halves their columns.
    """

    decoder_depth: list[float]
    decoder_ffn: list[float]
    kv_heads: list[float]
    group_heads: list[float]
    head_rank: list[float]
    tower_depth: list[float]
    tower_width: list[float]
    tower_ffn: list[float]
    resolution: list[float]
    visual_tokens: list[float]
    multiple: int


@dataclass
class SupernetConfig:
    """The training of all subnets together: in each step the largest, the smallest and `random` others (the sandwich
    rule, arXiv:1903.05134), on `batch` images with four questions each, drawn by `seed`.

    steps: 0 sorts the model's channels by importance, and trains nothing. importance_batches: on which they are sorted.
    The largest learns to stay what it was loaded as, the others learn from the largest; smallest_weight and
    random_weight: what their losses count, where the largest's counts 1.
    learning_rate is the peak, after `warmup` steps. temperature, hard_share, features, hidden: as of DistillConfig.
    threads: of torch, where there is no CUDA device. checkpoint_every: steps between saved states.
    """

    space: SpaceConfig
    steps: int
    batch: int
    random: int
    smallest_weight: float
    random_weight: float
    learning_rate: float
    warmup: int
    weight_decay: float
    temperature: float
    hard_share: float
    features: float
    hidden: float
    importance_batches: int
    seed: int
    threads: int
    log_every: int
    checkpoint_every: int


class StorageKind(Enum):
    """Of Optuna's storages: a journal file, a gRPC proxy, a relational database."""

    journal = "journal"
    grpc = "grpc"
    rdb = "rdb"


@dataclass
class StorageConfig:
    """Where Optuna keeps a study: kind journal, a file of the node's own; grpc, the proxy at `url` (HOST:PORT); rdb,
    the database at `url`, as SQLAlchemy writes it. name: of the study there; several searches may share a storage."""

    kind: StorageKind
    url: str | None
    name: str


@dataclass
class SearchConfig:
    """Who proposes, how much is tried, and what is good.

    trials: different architectures of each seed, `population` at a time. seeds: independent searches, whose trials all
    count; beside each runs a random search of as many. designs: uniform designs, of which every search is told first:
    all dimensions at the same share of the way from the smallest (0) to the largest (1).
    score: what samplers make large, measured on `images` (with four questions each) drawn by `seed`; frontier,
    hypervolume, shortlists and `prune` go by accuracy. prune: an architecture is given up after a quarter of the
    questions where its accuracy is so much below that of one which costs no more in anything; null gives up none.
    latency: whose, see LatencySource; answer_tokens, text_tokens: of the answer and of the question whose time it is.
    context: rows of the KV cache.
    beat_random: least ratio of the hypervolumes of the search and of random search, means over seeds; null asks for
    none. quantize: what the bytes are counted under.
    """

    sampler: Sampler
    trials: int
    population: int
    seeds: list[int]
    designs: list[float]
    score: Score
    images: int
    seed: int
    prune: float | None
    latency: LatencySource
    answer_tokens: int
    text_tokens: int
    context: int
    beat_random: float | None
    storage: StorageConfig
    quantize: QuantizeConfig


@dataclass
class ShortlistConfig:
    """What a device gets to choose from: the `candidates` best trials that keep its budgets, and take at most the
    shares `bytes` and `latency` of what the full model takes there; null: no such bound. refine: rounds in which the
    architectures one step beside the best that keep them are scored too, as `search` has it."""

    candidates: int
    bytes: float | None
    latency: float | None
    refine: int
    search: SearchConfig


@dataclass
class RecoverConfig:
    """How candidates learn from the loaded model, and on how many `images` (four questions each, drawn by `seed`) they
    are then ranked. sampler: the search's; off passes the loaded model on."""

    sampler: Sampler
    training: DistillConfig
    images: int
    seed: int
