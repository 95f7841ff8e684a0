"""What `laser check` finds out, as data."""

from dataclasses import dataclass

from orchestrator.cluster.nodes import Resources
from orchestrator.config.training import RunConfig
from orchestrator.data.tokens import ModelTokens
from orchestrator.planning.memory import MemoryPlan, ModelSize
from orchestrator.planning.sizing import Sizing
from orchestrator.training.preparation import PreparedRun

WEIGHT_FILES = ("*.safetensors", "*.bin")
SHORT_PROMPT_TOKENS = 40
SHOWN_PROMPT_CHARACTERS = 1200
NO_STEPS = "no training step (run.steps is 0): the run only measures the initial model"


@dataclass(frozen=True)
class Inputs:
    """What of a run's model and data is here. `absent` says for each key what is not."""

    tokens: ModelTokens | None
    prepared: PreparedRun | None
    absent: dict[str, str]


@dataclass(frozen=True)
class BatchPlan:
    """The arithmetic of one step, for the case that every sample has the greatest length."""

    prompts: int
    samples: int
    longest_sample: int
    """Tokens of prompt and response."""
    tokens: int
    mini_batches: int
    samples_per_mini_batch: int
    """Of the largest one."""
    micro_batches: int
    """Of each rank, for one mini-batch."""
    samples_per_micro_batch: int


@dataclass(frozen=True)
class Phase:
    """Steps `first` to `last` train with these terms."""

    first: int
    last: int
    terms: str


@dataclass(frozen=True)
class Share:
    """One pool's line in the placement: `actors` of `cpus` and `gpus` each."""

    pool: str
    actors: int
    cpus: float
    gpus: float


@dataclass(frozen=True)
class Report:
    """All that `show` prints. `notes` are the reasons that `strict` refuses; `warnings` it lets pass."""

    config: RunConfig
    inputs: Inputs
    batch: BatchPlan
    phases: tuple[Phase, ...]
    c_ref: tuple[str, ...]
    size: ModelSize | None
    memory: MemoryPlan | None
    machine: Resources
    sizing: Sizing | None
    warnings: tuple[str, ...]
    notes: tuple[str, ...]


def placement(config: RunConfig) -> list[Share]:
    """The pools' actors and what each reserves."""
    learning, rollout, verification = config.learning, config.rollout, config.verification
    engines = Share("rollout", rollout.num_engines, rollout.cpus, rollout.gpus * rollout.tensor_parallel)
    if rollout.colocate:
        engines = Share("rollout, in the learner's turns", rollout.num_engines, 0.0, 0.0)
    return [
        Share("learning", learning.num_ranks, learning.cpus_per_rank, learning.gpus_per_rank),
        engines,
        Share("verification", verification.num_workers, verification.cpus, 0.0),
    ]
