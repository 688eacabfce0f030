"""Section [finetune] of the settings, and the parts of it that functions of this room take."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from spoor.base.errors import UsageError

Kind = Literal["none", "late-mean", "late-last", "early"]
Module = Literal["tuned", "frozen"]
LearnableToken = Literal["none", "before candidate"]
Content = Literal["none", "added"]
ColdStart = Literal["none", "cir", "cir+idd"]
ENGAGED = "engaged"  # the first task: positive if any other task is


@dataclass(frozen=True)
class FusionConfig:
    """Raises UsageError for values that cannot be combined."""

    kind: Kind = "early"
    module: Module = "tuned"  # whether the encoder is trained along
    learnable_token: LearnableToken = "none"
    content: Content = "none"  # item attributes in the candidate's token
    cold_start: ColdStart = "none"
    window: int = 0  # slots of a context with its candidate; 0 = the release's served length

    def __post_init__(self) -> None:
        for name, literal in _LITERALS.items():
            if getattr(self, name) not in get_args(literal):
                raise UsageError(f"{name} must be one of {', '.join(get_args(literal))}; found {getattr(self, name)!r}")
        if self.kind != "early" and (self.learnable_token != "none" or self.content != "none"):
            raise UsageError(
                f"{self.kind} fusion has no candidate token", hint="learnable_token and content need early fusion"
            )
        if self.cold_start != "none" and not self.reads_histories:
            raise UsageError(
                f"cold_start {self.cold_start} repairs nothing with fusion {self.kind} and a {self.module} module",
                hint="it needs a module that is computed: early fusion, late-mean, or tuned late-last",
            )
        if self.window < 0:
            raise UsageError(
                f"finetune.window is {self.window}", hint="it must be at least 1, or 0 for the release's served length"
            )

    @property
    def reads_vectors(self) -> bool:
        """Whether the ranker reads vectors from Feast (frozen late-last) instead of running the encoder."""
        return self.kind == "late-last" and self.module == "frozen"

    @property
    def reads_histories(self) -> bool:
        """Whether the ranker runs the encoder on histories."""
        return self.kind != "none" and not self.reads_vectors

    def check_attributes(self, count: int) -> None:
        """Raises UsageError if content is set and items have no attributes (`count` = 0)."""
        if self.content != "none" and not count:
            raise UsageError(
                "no item attribute tells items apart, so there is no content to add to a candidate",
                hint="give a table of item attributes with --items, or set finetune.content = none",
            )


_LITERALS = {
    "kind": Kind,
    "module": Module,
    "learnable_token": LearnableToken,
    "content": Content,
    "cold_start": ColdStart,
}


@dataclass(frozen=True)
class ImpressionSettings:
    """`shown`: actions that show an item, empty = every action. `positive`: each is a task beside ENGAGED.

    Raises UsageError when a value is out of range."""

    positive: tuple[str, ...]
    shown: tuple[str, ...] = ()
    max_candidates: int = 20  # impressions of one request
    gap_minutes: float = 30.0  # a pause of this length ends a visit
    attribution_hours: float = 24.0  # between an impression and an action that counts for it

    def __post_init__(self) -> None:
        if not self.positive:
            raise UsageError(
                "no action is named as positive",
                hint="set finetune.positive_actions to those that a ranker should predict",
            )
        repeated = [name for name in dict.fromkeys(self.tasks) if self.tasks.count(name) > 1]
        if repeated:
            raise UsageError(
                f"the tasks {', '.join(self.tasks)} name {', '.join(repeated)} twice",
                hint=f"positive actions differ from one another and from `{ENGAGED}`, which stands for any of them",
            )
        if self.max_candidates < 1:
            raise UsageError(f"finetune.max_candidates is {self.max_candidates}", hint="it must be at least 1")

    @property
    def tasks(self) -> tuple[str, ...]:
        return (ENGAGED, *self.positive)


@dataclass(frozen=True)
class FinetuneSettings:
    """Raises UsageError when a value is out of range."""

    fusion: Kind = "early"  # how the ranker uses the encoder
    module: Module = "tuned"  # whether the encoder is trained along
    learnable_token: LearnableToken = "none"  # LT, early fusion only
    content: Content = "none"  # item attributes in the candidate's token, early fusion only
    cold_start: ColdStart = "none"  # repairs for new items: random ids, and dropout by age
    window: int = 0  # slots of a history with its candidate; 0 = the release's served length
    positive_actions: tuple[str, ...] = ()  # what the ranker predicts; each is a task
    shown_actions: tuple[str, ...] = ()  # actions that show an item; empty = every action
    max_candidates: int = 20  # impressions of one request
    gap_minutes: float = 30.0  # a pause of this length ends a visit, and a request with it
    attribution_hours: float = 24.0  # between an impression and an action that counts for it
    max_rows: int = 300_000  # impressions of a window at most: of more, a random choice of requests; bounds memory
    epochs: int = 12  # passes over the training rows at most; the best one on the newest rows is kept
    patience: int = 4  # epochs without a better one after which training ends; 0 = never
    batch_rows: int = 256  # impressions of one optimiser step
    learning_rate: float = 2e-3  # of the ranker, AdamW
    module_rate_share: float = 0.1  # of the learning rate, for the encoder and its tables
    weight_decay: float = 0.01  # of AdamW
    sequence_weight: float = 0.1  # of L_ntl over the histories
    module_weight: float = 0.5  # of the ranking losses on the module's own predictions
    agreement_weight: float = 0.5  # of the squared distance between the module's predictions and the ranker's
    alignment_weight: float = 0.1  # of the distance between content and id
    uniform_negatives: int = 256  # items drawn evenly for each step of L_ntl
    max_pairs: int = 1024  # of L_ntl in a step, drawn from all
    validation_share: float = 0.1  # newest share of training requests, by which the epoch is chosen
    threads: int = 1  # of the processor
    seed: int = 0  # of new weights, row order, dropout and negatives

    def __post_init__(self) -> None:
        _ = self.fusion_config
        for name in ("max_rows", "epochs", "batch_rows", "max_candidates", "uniform_negatives", "max_pairs", "threads"):
            self._require(getattr(self, name) >= 1, name, "at least 1")
        for name in ("learning_rate", "gap_minutes", "attribution_hours"):
            self._require(getattr(self, name) > 0, name, "above 0")
        weights = ("sequence_weight", "module_weight", "agreement_weight", "alignment_weight")
        for name in ("module_rate_share", "weight_decay", "patience", "seed", *weights):
            self._require(getattr(self, name) >= 0, name, "at least 0")
        self._require(0 < self.validation_share < 1, "validation_share", "in (0, 1)")

    @property
    def fusion_config(self) -> FusionConfig:
        return FusionConfig(
            kind=self.fusion,
            module=self.module,
            learnable_token=self.learnable_token,
            content=self.content,
            cold_start=self.cold_start,
            window=self.window,
        )

    @property
    def impressions(self) -> ImpressionSettings:
        """Raises UsageError without positive_actions."""
        return ImpressionSettings(
            positive=self.positive_actions,
            shown=self.shown_actions,
            max_candidates=self.max_candidates,
            gap_minutes=self.gap_minutes,
            attribution_hours=self.attribution_hours,
        )

    def _require(self, holds: bool, name: str, expected: str) -> None:
        if not holds:
            raise UsageError(
                f"finetune.{name} must be {expected}; found {getattr(self, name)}",
                hint="`spoor config show` lists every setting and where it comes from",
            )
