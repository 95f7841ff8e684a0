"""What `laser check` finds, as data: `check.py` works it out and `show.py` prints it."""

from dataclasses import dataclass

from orchestrator.cluster.machine import MainMemory
from orchestrator.cluster.nodes import Resources
from orchestrator.config.training import RunConfig
from orchestrator.data.tokens import ModelTokens
from orchestrator.planning.sizing import Sizing
from orchestrator.pools.memory import MemoryPlan, ModelSize
from orchestrator.training.preparation import PreparedRun


@dataclass(frozen=True)
class Inputs:
    """The run's model and data, as far as they are present."""

    tokens: ModelTokens | None
    """None where the model is absent."""
    prepared: PreparedRun | None
    """None where the model or the training data are absent."""
    absent: dict[str, str]
    """For each key whose model or data is absent, the reason."""


@dataclass(frozen=True)
class BatchPlan:
    """The arithmetic of one step in which every sample has the greatest length."""

    prompts: int
    samples: int
    longest_sample: int
    """Tokens of prompt and response."""
    tokens: int
    mini_batches: int
    samples_per_mini_batch: int
    """Of the largest mini-batch."""
    micro_batches: int
    """Of each rank, for one mini-batch."""
    samples_per_micro_batch: int


@dataclass(frozen=True)
class TrainingPhase:
    """The terms of the loss in steps `first` to `last`, both included."""

    first: int
    last: int
    terms: str


@dataclass(frozen=True)
class PoolShare:
    """What one pool reserves: `actors` actors with `cpus` and `gpus` each."""

    pool: str
    actors: int
    cpus: float
    gpus: float


@dataclass(frozen=True)
class Report:
    """Everything that `laser check` prints."""

    config: RunConfig
    inputs: Inputs
    batch: BatchPlan
    phases: tuple[TrainingPhase, ...]
    """Empty for a run without steps."""
    c_ref: tuple[str, ...]
    """Lines of text about c_ref; empty where self-rewarding is off."""
    staleness: tuple[str, ...]
    """Lines of text about weights that lag behind; empty on-policy."""
    size: ModelSize | None
    """None, like `memory`, where the model is absent."""
    memory: MemoryPlan | None
    placement: tuple[PoolShare, ...]
    machine: Resources
    machine_memory: MainMemory
    sizing: Sizing | None
    warnings: tuple[str, ...]
    notes: tuple[str, ...]
    """Reasons why the run may not start on this machine. `--strict` refuses them; it accepts warnings."""
